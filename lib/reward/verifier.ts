/** What a verifier is, and how its verdicts are checked. */
import { inspect } from 'node:util'
import { RapoError, reasonOf } from '../base/errors.js'
import { waitFor } from '../base/wait.js'

/** What a verifier makes of a completion. */
export interface Verdict {
  /** Finite; 1 is a correct completion. pass@k counts rewards ≥ 1 as correct. */
  readonly reward: number
  /** One line for a person: why this reward. */
  readonly reason: string
}

/**
 * Judges completions. A malformed completion is worth 0 with a reason; only a fault of the verifier's own throws,
 * and that ends the run.
 */
export interface Verifier {
  /**
   * Says what is wrong with a problem's answer, or undefined: at once, not by a promise. Called once a problem, before
   * anything is sampled.
   */
  checkAnswer(answer: unknown): string | undefined
  /** Judges one completion. Promises may be many: a step's completions are all asked for before the first is awaited. */
  verify(completion: string, answer: unknown): Verdict | Promise<Verdict>
  /** The same of a final answer alone, where verify looks for it in the completion. Default: verify. */
  verifyAnswer?(given: string, answer: unknown): Verdict | Promise<Verdict>
}

/** What checkAnswer says of an answer. Whatever it throws, or gives instead of a text, is a RapoError that names `what`. */
export function checkAnswer(
  verifier: Pick<Verifier, 'checkAnswer'>,
  answer: unknown,
  what: string,
): string | undefined {
  const fault = (why: string, cause?: unknown) =>
    new RapoError('ERR_RAPO_INTERNAL', `the verifier's checkAnswer failed on ${what}: ${why}`, { cause })
  let said: unknown
  try {
    said = verifier.checkAnswer(answer)
  } catch (cause) {
    throw fault(reasonOf(cause), cause)
  }
  if (said === undefined || typeof said === 'string') return said
  // Nobody waits for it: its rejection would end the process.
  if (isThenable(said)) said.then(undefined, () => {})
  throw fault(
    `it must return a text or undefined, at once, and returned ${isThenable(said) ? 'a promise' : inspect(said)}`,
  )
}

/** How long a verdict is waited for. */
export interface Patience {
  /** Seconds; absent: without end. */
  readonly timeout?: number | undefined
  /** What a verdict that takes longer is: a fault of the verifier's, or reward 0. Default error. */
  readonly onTimeout?: 'error' | 'zero' | undefined
  readonly signal?: AbortSignal | undefined
}

/**
 * What a verifier says. Whatever it throws, a verdict that never comes, or a reward that is no number, is a RapoError
 * that names `what` it judged. Aborting rejects with the signal's reason.
 */
export async function judge(
  verify: () => Verdict | Promise<Verdict>,
  what: string,
  { timeout, onTimeout = 'error', signal }: Patience = {},
): Promise<Verdict> {
  const fault = (why: string, cause?: unknown) =>
    new RapoError('ERR_RAPO_INTERNAL', `the verifier failed on ${what}: ${why}`, { cause })
  const late = new Error(`it has not answered within ${timeout} seconds (task.timeout)`)
  const never = new Error(
    'its promise can never settle: nothing is left in this process that it could wait for',
  )
  let verdict: Verdict
  try {
    const pending = verify()
    verdict = isThenable<Verdict>(pending)
      ? await waitFor(pending, { signal, timeout, fault: why => (why === 'timeout' ? late : never) })
      : pending
  } catch (cause) {
    if (signal?.aborted && cause === signal.reason) throw cause
    if (cause === late && onTimeout === 'zero')
      return { reward: 0, reason: `no verdict within ${timeout} seconds` }
    throw fault(reasonOf(cause), cause)
  }
  if (!Number.isFinite(verdict?.reward)) throw fault(`its reward is ${verdict?.reward}`)
  return verdict
}

function isThenable<T>(value: unknown): value is PromiseLike<T> {
  return typeof (value as { then?: unknown } | undefined)?.then === 'function'
}
