import { distance } from 'fastest-levenshtein'
import { RapoError } from '../base/errors.js'
import { importModule } from '../base/module.js'
import { countdown } from './countdown.js'
import { exact } from './exact.js'
import { math } from './math.js'
import type { Verifier } from './verifier.js'

/** Verifiers by name: those built in, and modules of the user's. */
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
