/** Waits for promises of user code, which may never settle. */
import { setMaxListeners } from 'node:events'
import { RapoError } from './errors.js'
import { plural } from './text.js'

export interface WaitOptions {
  /** Aborting ends the waiting with the signal's reason. */
  readonly signal?: AbortSignal | undefined
  /** Ends the waiting after so many seconds. */
  readonly timeout?: number | undefined
  /** The error to throw. 'never': nothing is left in this process that could settle the promise. */
  fault(why: 'timeout' | 'never'): Error
  /**
   * True for a whole call, inside which other waits run. The inner waits know better what cannot settle: if there are any, only
   * they are told.
   */
  readonly isWhole?: boolean
}

/**
 * Waits that are told when the process has nothing left to do; otherwise the process would end silently. The value is isWhole.
 */
const waiting = new Map<() => void, boolean>()

function tellAll(): void {
  const inner = [...waiting].filter(([, isWhole]) => !isWhole)
  for (const [tell] of inner.length > 0 ? inner : [...waiting]) tell()
}

/** The value of `work`; throws if `work` fails, or if the wait ends for one of the reasons in `options`. */
export async function waitFor<T>(work: T | PromiseLike<T>, options: WaitOptions): Promise<T> {
  const { signal, timeout, fault, isWhole = false } = options
  let stop = () => {}
  const given = new Promise<never>((_, reject) => {
    const onNever = () => reject(fault('never'))
    const onAbort = () => reject(signal!.reason)
    const onTimeout = () => reject(fault('timeout'))
    if (signal?.aborted) return onAbort()
    if (waiting.size === 0) process.on('beforeExit', tellAll)
    waiting.set(onNever, isWhole)
    signal?.addEventListener('abort', onAbort)
    // A timer cannot run for more than 2^31 − 1 milliseconds.
    const timer =
      timeout === undefined ? undefined : setTimeout(onTimeout, Math.min(timeout * 1000, 2 ** 31 - 1)).unref()
    stop = () => {
      waiting.delete(onNever)
      if (waiting.size === 0) process.off('beforeExit', tellAll)
      signal?.removeEventListener('abort', onAbort)
      clearTimeout(timer)
    }
  })
  try {
    return await Promise.race([work, given])
  } finally {
    stop()
  }
}

/** The result of a call that may wait for parts of the user's (a policy, say) without an end. */
export function whole<T>(name: string, call: Promise<T>): Promise<T> {
  const never = () =>
    new RapoError(
      'ERR_RAPO_INTERNAL',
      `${name} cannot end: a promise that it waits for, perhaps of loadPolicy or of the policy, can never settle`,
    )
  return waitFor(call, { fault: never, isWhole: true })
}

/** An answer of a user's code that took longer than task.timeout. */
export class TooLate extends Error {}

/** The answer of a user's code that a run cannot do without. Throws TooLate, and an error for an answer that can never come. */
export function answerOf<T>(
  answer: T | PromiseLike<T>,
  { signal, timeout }: Pick<WaitOptions, 'signal' | 'timeout'>,
): Promise<T> {
  const fault = (why: 'timeout' | 'never') =>
    why === 'timeout'
      ? new TooLate(`it has not answered within ${plural(timeout!, 'second')} (task.timeout)`)
      : new Error('its promise can never settle: nothing is left in this process that it could wait for')
  return waitFor(answer, { signal, timeout, fault })
}

/** The value of a user's callback, which may be async. */
export function told<T>(answer: T, signal?: AbortSignal): Promise<Awaited<T>> {
  const never = () => new RapoError('ERR_RAPO_INTERNAL', 'the promise of a callback can never settle')
  return waitFor(answer as Awaited<T>, { signal, fault: never })
}

/** Aborted by any of them. Many may wait for it at once. */
export function anySignal(...signals: readonly (AbortSignal | undefined)[]): AbortSignal {
  const any = AbortSignal.any(signals.filter(signal => signal !== undefined))
  // Not 0, for which events.getMaxListeners, which undici asks, throws.
  setMaxListeners(Infinity, any)
  return any
}
