/** Verifiers by name: those built in, and modules of the user's. */
import { distance } from 'fastest-levenshtein'
import { RapoError } from '../base/errors.js'
import { importModule } from '../base/module.js'
import { countdown } from './countdown.js'
import { exact } from './exact.js'
import { createMath, type MathOptions } from './math.js'
import type { Verdict, Verifier } from './verifier.js'

/** Those built in. */
const verifiers: Readonly<Record<string, Verifier>> = {
  countdown,
  exact: withAlternatives(exact),
  math: withAlternatives(createMath()),
}

export const verifierNames = Object.keys(verifiers)

/**
 * A built-in verifier by its name, or the default export of a module by its path; the options are those of `math`, which
 * no other takes. Throws ERR_RAPO_CONFIG.
 */
export async function loadVerifier(name: string, options: MathOptions = {}): Promise<Verifier> {
  const { extract = 'boxed', tolerance } = options
  if (extract !== 'boxed' || tolerance !== undefined) {
    if (name === 'math') return withAlternatives(createMath({ extract, tolerance }))
    const given = extract !== 'boxed' ? `task.extract ${extract}` : `task.tolerance ${tolerance}`
    throw new RapoError('ERR_RAPO_CONFIG', `${given} is for the verifier math, and task.verifier is ${name}`)
  }
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

/** The verifier with answers that may also be a list: a completion is right where any entry of the list is its answer. */
function withAlternatives(verifier: Verifier): Verifier {
  const best = async (
    answers: readonly unknown[],
    judge: (answer: unknown) => Verdict | Promise<Verdict>,
  ) => {
    const verdicts = await Promise.all(answers.map(judge))
    return verdicts.reduce((best, verdict) => (verdict.reward > best.reward ? verdict : best))
  }
  const { verify, verifyAnswer } = verifier
  return {
    checkAnswer(answer) {
      if (!Array.isArray(answer)) return verifier.checkAnswer(answer)
      if (answer.length === 0) return 'answer is an empty list'
      const faults = answer.map((entry, i) => [i, verifier.checkAnswer(entry)] as const)
      const [at, fault] = faults.find(([, fault]) => fault !== undefined) ?? []
      return fault === undefined
        ? undefined
        : `answer has several entries, of which number ${at! + 1}: ${fault}`
    },
    verify: (completion, answer) =>
      Array.isArray(answer) ? best(answer, entry => verify(completion, entry)) : verify(completion, answer),
    ...(verifyAnswer && {
      verifyAnswer: (text: string, answer: unknown) =>
        Array.isArray(answer) ? best(answer, entry => verifyAnswer(text, entry)) : verifyAnswer(text, answer),
    }),
  }
}
