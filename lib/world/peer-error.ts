/** The error of a rank on the other ranks. */
import { RapoError, type RapoErrorCode } from '../base/errors.js'

export interface Failure {
  readonly code: RapoErrorCode
  readonly message: string
  readonly isAbort: boolean
}

/** What failed on another rank. The error's own rank has printed the error itself. */
export class PeerError extends RapoError {
  /** The other rank asked all to stop. */
  readonly isAbort: boolean

  constructor(
    readonly rank: number,
    { code, message, isAbort }: Failure,
  ) {
    super(code, `rank ${rank}: ${message}`)
    this.isAbort = isAbort
  }
}
