/** What a verifier is, and how one is found by its name. */
import { distance } from 'fastest-levenshtein'
import { RapoError } from '../base/errors.js'
import { importModule } from '../base/module.js'
import { countdown } from './countdown.js'
import { exact } from './exact.js'
import { math } from './math.js'

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

const verifiers: Readonly<Record<string, Verifier>> = { countdown, exact, math }
export const verifierNames = Object.keys(verifiers)

/** A built-in verifier by its name, or the default export of a module by its path. Throws ERR_RAPO_CONFIG. */
export async function loadVerifier(name: string): Promise<Verifier> {
  const builtIn = Object.hasOwn(verifiers, name) ? verifiers[name] : undefined
  if (builtIn) return builtIn
  if (!/[\\/]|\.[cm]?[jt]s$/.test(name)) {
    const nearest = verifierNames.toSorted((a, b) => distance(name, a) - distance(name, b))[0]
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `task.verifier "${name}" is not known: did you mean "${nearest}"? Known: ${verifierNames.join(', ')}, or the path of a module`,
    )
  }
  const module = await importModule('task.verifier', name)
  const verifier = module.default as Partial<Verifier> | undefined
  if (typeof verifier?.verify !== 'function' || typeof verifier.checkAnswer !== 'function') {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `task.verifier ${name}: its default export must have the functions verify(completion, answer) and checkAnswer(answer)`,
    )
  }
  return verifier as Verifier
}
