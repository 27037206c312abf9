/** The verifier `math`: the completion's last boxed answer equals the reference (docs/math-verifier.md). */
import { compareAnswers } from './math/compare.js'
import { extractBoxed } from './math/extract.js'
import type { Verdict, Verifier } from './verifier.js'

export { type Comparison, compareAnswers } from './math/compare.js'
export { extractBoxed } from './math/extract.js'

export const math: Verifier = {
  checkAnswer(answer) {
    const isUsable = (typeof answer === 'string' && answer.trim() !== '') || Number.isFinite(answer)
    if (!isUsable) return 'answer must be a number or a text that is not empty'
    if (String(answer).includes('####'))
      return 'answer must be the final answer alone: of a solution that ends in "#### 72", what follows ####'
    return undefined
  },
  verify: (completion, answer) => verifyMath(completion, String(answer)),
  verifyAnswer: (given, answer) => judge(given, String(answer)),
}

/** Reward 1 where the last boxed answer equals the reference, else 0. Never throws, whatever the texts. */
export function verifyMath(completion: string, reference: string): Verdict {
  const answer = extractBoxed(completion)
  return answer === undefined ? { reward: 0, reason: 'no boxed answer' } : judge(answer, reference)
}

function judge(answer: string, reference: string): Verdict {
  const { isEqual, reason } = compareAnswers(answer, reference)
  return { reward: isEqual ? 1 : 0, reason: isEqual ? `correct: ${reason}` : reason }
}
