/** The verifier `exact`: the completion, without the white space around it, is the answer's text. */
import type { Verifier } from './verifier.js'

export const exact: Verifier = {
  checkAnswer: answer =>
    typeof answer === 'string' && answer.trim() !== ''
      ? undefined
      : 'answer must be a text that is not empty',
  verify(completion, answer) {
    const isCorrect = completion.trim() === (answer as string).trim()
    return isCorrect ? { reward: 1, reason: 'correct' } : { reward: 0, reason: 'not the answer' }
  },
}
