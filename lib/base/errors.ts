/** The one class of rapo's errors: a message for people, a code for programs. */
export type RapoErrorCode =
  | 'ERR_RAPO_INVALID_ARGUMENT'
  | 'ERR_RAPO_NON_FINITE'
  | 'ERR_RAPO_IO'
  | 'ERR_RAPO_FORMAT'
  | 'ERR_RAPO_UNSUPPORTED'
  | 'ERR_RAPO_ABORTED'
  | 'ERR_RAPO_OUT_OF_MEMORY'
  | 'ERR_RAPO_DEVICE'
  | 'ERR_RAPO_DISTRIBUTED'
  | 'ERR_RAPO_INTERNAL'
  | 'ERR_RAPO_CONFIG'
  | 'ERR_RAPO_DATA'
  | 'ERR_RAPO_SETUP'

/**
 * The error that rapo throws. `code` is for programs, `message` for people; `cause` is the underlying error, if there is one.
 */
export class RapoError extends Error {
  override readonly name = 'RapoError'
  readonly code: RapoErrorCode

  constructor(code: RapoErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}

/** Throws ERR_RAPO_INVALID_ARGUMENT. */
export function invalid(message: string): never {
  throw new RapoError('ERR_RAPO_INVALID_ARGUMENT', message)
}

/** Throws ERR_RAPO_INVALID_ARGUMENT naming an argument or field, its value and what it may be. */
export function invalidValue(name: string, value: unknown, expected: string): never {
  invalid(`${name} is ${String(value)}, expected ${expected}`)
}

/** What was thrown, as a text. Somebody else's code may throw anything, also what cannot be shown. */
export function reasonOf(thrown: unknown): string {
  try {
    return String(thrown instanceof Error ? thrown.message : thrown)
  } catch {
    return 'what was thrown cannot be shown as a text'
  }
}
