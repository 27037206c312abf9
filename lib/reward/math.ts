/** The verifier `math`: the completion's final answer equals the reference (docs/math-verifier.md). */
import { type CompareOptions, compareAnswers } from './math/compare.js'
import { type Extraction, extractAnswer } from './math/extract.js'
import { condense } from './math/texts.js'
import type { Verdict, Verifier } from './verifier.js'

export { type CompareOptions, type Comparison, compareAnswers } from './math/compare.js'
export { type Extraction, extractAnswer, extractBoxed, extractions } from './math/extract.js'
export type { Tolerance } from './math/judge.js'

/** Options of verifyMath: how it finds and compares answers. */
export interface MathOptions extends CompareOptions {
  /** Which text of the completion is the answer. Default: boxed. */
  readonly extract?: Extraction | undefined
}

/** The verifier `math` with these options. */
export function createMath(options: MathOptions = {}): Verifier {
  return {
    checkAnswer(answer) {
      const isUsable = (typeof answer === 'string' && answer.trim() !== '') || Number.isFinite(answer)
      if (!isUsable) return 'answer must be a number or a text that is not empty'
      const isCut = typeof answer === 'string' && /####\s*$/.test(answer)
      return isCut ? 'answer must have the final answer behind ####' : undefined
    },
    verify: (completion, answer) => verifyMath(completion, String(answer), options),
    verifyAnswer: (given, answer) => judge(given, String(answer), options),
  }
}

/** The verifier `math` with default options. */
export const math: Verifier = createMath()

const missing: Readonly<Record<Extraction, string>> = {
  boxed: 'no boxed answer',
  final: 'no final answer',
  any: 'no answer',
}

/** Reward 1 if the final answer equals the reference, otherwise 0. Never throws, whatever the texts are. */
export function verifyMath(completion: string, reference: string, options: MathOptions = {}): Verdict {
  const { extract = 'boxed' } = options
  const answer = extractAnswer(completion, extract)
  return answer === undefined ? { reward: 0, reason: missing[extract] } : judge(answer, reference, options)
}

function judge(answer: string, reference: string, options: CompareOptions): Verdict {
  const { isEqual, reason } = compareAnswers(answer, reference, options)
  const text = condense(answer)
  return {
    ...{ reward: isEqual ? 1 : 0, reason: isEqual ? `correct: ${reason}` : reason },
    ...(text !== '' && { answer: text }),
  }
}
