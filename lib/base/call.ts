/** What the asynchronous calls of both addons have in common: an abort goes in, progress and an error come out. */
import { inspect } from 'node:util'
import { RapoError } from './errors.js'

/** Of every long call. */
export interface CallOptions {
  /**
   * Aborting rejects with the signal's reason as soon as the native call has stopped. An abort that comes too late for
   * that changes nothing: the call resolves.
   */
  readonly signal?: AbortSignal | undefined
  /**
   * Called on the thread that made the call, a few times a second while the call runs and once when it is over. What
   * onProgress throws, or rejects with, aborts the call, which then rejects with that error; where the work was done
   * already, its result is kept and the error becomes a warning of the process.
   */
  readonly onProgress?: ((done: number, total: number) => void) | undefined
}

/** The Control of either addon. */
export interface Control {
  cancel(): void
  readonly done: number
  readonly total: number
}

const progressInterval = 200 // milliseconds

/** Throws ERR_RAPO_INVALID_ARGUMENT for a signal that is none, or an onProgress that cannot be called. */
export function checkCallOptions(options: CallOptions): void {
  if (typeof options !== 'object' || options === null) invalid('options', options, 'an object')
  const { signal, onProgress } = options
  if (signal !== undefined && !(typeof signal?.aborted === 'boolean' && signal.addEventListener)) {
    invalid('signal', signal, 'an AbortSignal')
  }
  if (onProgress !== undefined && typeof onProgress !== 'function') {
    invalid('onProgress', onProgress, 'a function')
  }
}

/** Starts a native call and ends with it. */
export async function runCall<T>(
  control: Control,
  { signal, onProgress }: CallOptions,
  start: (control: Control) => Promise<T>,
): Promise<T> {
  if (signal?.aborted) throw signal.reason
  let failure: { readonly error: unknown } | undefined
  let isDone = false
  const cancel = () => control.cancel()
  const report = async () => {
    if (failure) return
    try {
      await onProgress?.(control.done, control.total)
    } catch (error) {
      failure = { error }
      control.cancel()
      if (isDone) warn(error)
    }
  }
  signal?.addEventListener('abort', cancel, { once: true })
  const timer = onProgress && setInterval(report, progressInterval)
  try {
    const result = await start(control)
    isDone = true
    if (failure) warn(failure.error)
    report()
    return result
  } catch (error) {
    if (!(error instanceof RapoError && error.code === 'ERR_RAPO_ABORTED')) throw error
    if (failure) throw failure.error
    if (signal?.aborted) throw signal.reason
    throw error
  } finally {
    clearInterval(timer)
    signal?.removeEventListener('abort', cancel)
  }
}

function warn(error: unknown): void {
  process.emitWarning(`onProgress failed; the call's result is kept: ${inspect(error)}`, 'RapoWarning')
}

function invalid(name: string, value: unknown, expected: string): never {
  throw new RapoError('ERR_RAPO_INVALID_ARGUMENT', `${name} is ${inspect(value)}, expected ${expected}`)
}
