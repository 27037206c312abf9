/** What long calls have in common: an abort goes in, progress and an error come out. */
import { inspect } from 'node:util'
import { RapoError, reasonOf } from './errors.js'

/** Options of every long call. */
export interface CallOptions {
  /**
   * Aborting stops the native call; the promise then rejects with the signal's reason. If the call can no longer be stopped, it
   * resolves as if there had been no abort.
   */
  readonly signal?: AbortSignal | undefined
  /**
   * Called on the thread that made the call, a few times a second while the call runs and once at its end. If onProgress throws
   * or rejects, the call is aborted and rejects with that error. If the work was done already, the result is kept and the error
   * becomes a warning of the process.
   */
  readonly onProgress?: ((done: number, total: number) => void) | undefined
}

/** The Control object of an addon; both addons have one. */
export interface Control {
  cancel(): void
  readonly done: number
  readonly total: number
}

/** A user's function that is called with the state of work while the work runs. */
export interface Watched<A extends unknown[]> {
  /** Calls the function and never throws. */
  call(...args: A): void
  /** Aborted with what the function throws, or rejects with. From then on the function is not called. */
  readonly failed: AbortSignal
  /** To be called when the work is done: an error of the function, earlier or later, becomes a warning of the process. */
  finish(): void
}

/**
 * Without this, what the function throws in an event of Node's, or a promise of its that rejects, ends the process.
 * @param name the option that the function is, for the warning
 */
export function watched<A extends unknown[]>(
  name: string,
  told: ((...args: A) => unknown) | undefined,
): Watched<A> {
  const failure = new AbortController()
  let isDone = false
  const fail = (error: unknown) => {
    if (failure.signal.aborted) return
    failure.abort(error)
    if (isDone) warn(name, error)
  }
  return {
    failed: failure.signal,
    call(...args) {
      if (failure.signal.aborted) return
      try {
        Promise.resolve(told?.(...args)).catch(fail)
      } catch (error) {
        fail(error)
      }
    },
    finish() {
      isDone = true
      if (failure.signal.aborted) warn(name, failure.signal.reason)
    },
  }
}

function warn(name: string, error: unknown): void {
  const why = error instanceof Error ? (error.stack ?? reasonOf(error)) : reasonOf(error)
  process.emitWarning(`${name} failed; the call's result is kept: ${why}`, 'RapoWarning')
}

const progressInterval = 200 // milliseconds

/** Throws ERR_RAPO_INVALID_ARGUMENT if `signal` is not an AbortSignal or `onProgress` not a function. */
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
  const told = onProgress && watched('onProgress', onProgress)
  const report = () => told?.call(control.done, control.total)
  const cancel = () => control.cancel()
  for (const stop of [signal, told?.failed]) stop?.addEventListener('abort', cancel, { once: true })
  const timer = told && setInterval(report, progressInterval)
  try {
    const result = await start(control)
    told?.finish()
    report()
    return result
  } catch (error) {
    if (!(error instanceof RapoError && error.code === 'ERR_RAPO_ABORTED')) throw error
    told?.failed.throwIfAborted()
    if (signal?.aborted) throw signal.reason
    throw error
  } finally {
    clearInterval(timer)
    signal?.removeEventListener('abort', cancel)
  }
}

function invalid(name: string, value: unknown, expected: string): never {
  throw new RapoError('ERR_RAPO_INVALID_ARGUMENT', `${name} is ${inspect(value)}, expected ${expected}`)
}
