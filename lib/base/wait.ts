/** Waiting for a promise of somebody else's code, which may never settle. */
import { setMaxListeners } from 'node:events'
import { RapoError } from './errors.js'

export interface WaitOptions {
  /** Aborting ends the waiting with the signal's reason. */
  readonly signal?: AbortSignal | undefined
  /** Ends the waiting after so many seconds. */
  readonly timeout?: number | undefined
  /** What to throw: 'timeout', or 'never' where nothing is left in this process that could settle the promise. */
  fault(why: 'timeout' | 'never'): Error
  /** Of a whole call, in which others wait: these know better what never comes, and are told instead where there are any. */
  readonly isWhole?: boolean
}

/** What is to be told when the process has nothing left to do: it would end there, silently. True: of a whole call. */
const waiting = new Map<() => void, boolean>()

function tellAll(): void {
  const inner = [...waiting].filter(([, isWhole]) => !isWhole)
  for (const [tell] of inner.length > 0 ? inner : [...waiting]) tell()
}

/** The value of work, or why there is none. */
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
    // A timer holds no more than 2^31 − 1 milliseconds.
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
