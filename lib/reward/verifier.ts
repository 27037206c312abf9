/** What a verifier is, and how its verdicts are checked. */
import { RapoError } from '../base/errors.js'

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
  /** Says what is wrong with a problem's answer, or undefined. Called once a problem, before anything is sampled. */
  checkAnswer(answer: unknown): string | undefined
  /** Judges one completion. Promises may be many: a step's completions are all asked for before the first is awaited. */
  verify(completion: string, answer: unknown): Verdict | Promise<Verdict>
  /** The same of a final answer alone, where verify looks for it in the completion. Default: verify. */
  verifyAnswer?(given: string, answer: unknown): Verdict | Promise<Verdict>
}

/** What a verifier says. Whatever it throws, or a reward that is no number, is a RapoError that names `what` it judged. */
export async function judge(verify: () => Verdict | Promise<Verdict>, what: string): Promise<Verdict> {
  const fault = (why: string, cause?: unknown) =>
    new RapoError('ERR_RAPO_INTERNAL', `the verifier failed on ${what}: ${why}`, { cause })
  let verdict: Verdict
  try {
    verdict = await verify()
  } catch (cause) {
    throw fault(cause instanceof Error ? cause.message : String(cause), cause)
  }
  if (!Number.isFinite(verdict?.reward)) throw fault(`its reward is ${verdict?.reward}`)
  return verdict
}
