/** What a verifier is, and how its verdicts are checked. */
import { inspect } from 'node:util'
import { RapoError } from '../base/errors.js'
import { plural } from '../base/text.js'
import { reasonAndPlace } from '../base/thrown.js'
import { answerOf, TooLate } from '../base/wait.js'
import type { FinishReason } from '../model/policy.js'
import type { Message } from '../model/template.js'

/** A judged completion. */
export interface Verdict {
  /** Finite; 1 is a correct completion. pass@k counts rewards ≥ 1 as correct. */
  readonly reward: number
  /** One line for a person: why this reward. Empty where the verifier gave none. */
  readonly reason: string
  /** What the completion answers, for maj@k: wrong completions with equal texts have the same answer. */
  readonly answer?: string
}

/** What a verifier may return: a reward alone, or a reward with a reason and the answer that it found. */
export type VerifierResult =
  | number
  | { readonly reward: number; readonly reason?: string | undefined; readonly answer?: string | undefined }

/** What is known of a completion beside its text and the answer. */
export interface VerifyContext {
  /** The problem's name. */
  readonly id: string
  /** The problem's text; of a conversation, the last message of the user. */
  readonly prompt: string
  /** The conversation, where the problem is one. */
  readonly messages?: readonly Message[]
  /** The columns of the problem's row that are neither its problem, answer, id nor difficulty. */
  readonly columns: Readonly<Record<string, unknown>>
  /** Of an episode: its turns. The completion to judge is the last one's. */
  readonly turns?: readonly Turn[]
  /** Of a completion that was sampled: its tokens, with the one that ended it. Of an episode: also those of the observations. */
  readonly tokens?: number
  /** Of a completion that was sampled: the largest number of tokens that it could have had. */
  readonly maxNewTokens?: number
  /** Of a completion that was sampled: `length` where it was cut off. */
  readonly finishReason?: FinishReason
}

/** One turn of an episode. */
export interface Turn {
  readonly completion: string
  /** What the environment answered; absent at the end. */
  readonly observation?: string
}

/** A verifier's judgement of one completion. */
export type Verify = (
  completion: string,
  answer: unknown,
  context: VerifyContext,
) => VerifierResult | Promise<VerifierResult>

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
  verify(...args: Parameters<Verify>): ReturnType<Verify>
  /** The same of a final answer alone, where verify looks for it in the completion. Default: verify. */
  verifyAnswer?(...args: Parameters<Verify>): ReturnType<Verify>
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
    throw fault(reasonAndPlace(cause), cause)
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
  /** What a message calls the one that judges. Default: the verifier. */
  readonly who?: string | undefined
}

/**
 * What a verifier says. Whatever it throws, a verdict that never comes, or a result that is no VerifierResult, is a
 * RapoError that names `what` it judged. Aborting rejects with the signal's reason.
 */
export async function judge(
  verify: () => VerifierResult | Promise<VerifierResult>,
  what: string,
  { timeout, onTimeout = 'error', signal, who = 'the verifier' }: Patience = {},
): Promise<Verdict> {
  const fault = (why: string, cause?: unknown) =>
    new RapoError('ERR_RAPO_INTERNAL', `${who} failed on ${what}: ${why}`, { cause })
  let result: VerifierResult
  try {
    const pending = verify()
    result = isThenable<VerifierResult>(pending) ? await answerOf(pending, { signal, timeout }) : pending
  } catch (cause) {
    if (signal?.aborted && cause === signal.reason) throw cause
    if (cause instanceof TooLate && onTimeout === 'zero')
      return { reward: 0, reason: `no verdict within ${plural(timeout ?? 0, 'second')}` }
    throw fault(reasonAndPlace(cause), cause)
  }
  const verdict = toVerdict(result)
  if (typeof verdict === 'string') throw fault(verdict)
  return verdict
}

/** The result as a verdict, or what is wrong with it. */
function toVerdict(result: unknown): Verdict | string {
  const {
    reward,
    reason = '',
    answer,
  } = (typeof result === 'number' ? { reward: result } : (result ?? {})) as {
    reward?: unknown
    reason?: unknown
    answer?: unknown
  }
  const wanted = 'it must return a number, or { reward: a number, reason: a text, which may be left out }'
  if (typeof reward !== 'number' || !Number.isFinite(reward))
    return `its reward is ${asText(reward)}; it returned ${asText(result)}, but ${wanted}`
  if (typeof reason !== 'string') return `its reason is ${asText(reason)}, which is no text; ${wanted}`
  if (answer !== undefined && typeof answer !== 'string')
    return `its answer is ${asText(answer)}; it must be a text, or be left out`
  return { reward, reason, ...(answer !== undefined && { answer }) }
}

/** A value as a message shows it, cut where it is long. */
export function asText(value: unknown): string {
  const text = inspect(value, { breakLength: Infinity, depth: 1 })
  return text.length > 80 ? `${text.slice(0, 80)}…` : text
}

function isThenable<T>(value: unknown): value is PromiseLike<T> {
  return typeof (value as { then?: unknown } | undefined)?.then === 'function'
}
