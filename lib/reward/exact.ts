/** The verifier `exact`: the completion, without the white space around it, is the answer's text. */
import type { Verifier } from './verifier.js'

export const exact: Verifier = {
  checkAnswer: answer =>
    typeof answer === 'string' && answer.trim() !== ''
      ? undefined
      : 'answer must be a text that is not empty',
  verify(completion, answer) {
    const given = completion.trim()
    const isCorrect = given === (answer as string).trim()
    return { reward: isCorrect ? 1 : 0, reason: isCorrect ? 'correct' : 'not the answer', answer: given }
  },
}
