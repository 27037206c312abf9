/** What a verifier is, and how one is found by its name. */
import { existsSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { distance } from 'fastest-levenshtein'
import { RapoError } from '../errors.js'
import { countdown } from './countdown.js'
import { exact } from './exact.js'

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
  /** Judges one completion of a problem with this answer. */
  verify(completion: string, answer: unknown): Verdict | Promise<Verdict>
}

const verifiers: Readonly<Record<string, Verifier>> = { countdown, exact }
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
  const file = path.resolve(name)
  if (!existsSync(file)) throw new RapoError('ERR_RAPO_CONFIG', `task.verifier: there is no file ${name}`)
  let module: { default?: unknown }
  try {
    module = await import(pathToFileURL(file).href)
  } catch (cause) {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `task.verifier ${name} did not load: ${(cause as Error).message}`,
      {
        cause,
      },
    )
  }
  const verifier = module.default as Partial<Verifier> | undefined
  if (typeof verifier?.verify !== 'function' || typeof verifier.checkAnswer !== 'function') {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `task.verifier ${name}: its default export must have the functions verify(completion, answer) and checkAnswer(answer)`,
    )
  }
  return verifier as Verifier
}
