/** Your own verifier: the module that `task.verifier` names has an object with these two functions as its default export. */
import type { CountdownAnswer, Verifier } from 'rapo'

export const isAnswer = (answer: unknown): answer is CountdownAnswer => {
  const { numbers, target } = (answer ?? {}) as Partial<CountdownAnswer>
  return Array.isArray(numbers) && numbers.every(Number.isInteger) && Number.isInteger(target)
}

export default {
  checkAnswer: answer => (isAnswer(answer) ? undefined : 'answer must be { numbers, target }'),

  /** A tenth for each of the numbers that appears, whatever the value of the expression. Called once per completion. */
  verify(completion, answer) {
    const left: string[] = completion.match(/\d+/g) ?? []
    const used = (answer as CountdownAnswer).numbers.filter(number => {
      const at = left.indexOf(String(number))
      return at >= 0 && left.splice(at, 1)
    })
    return { reward: used.length / 10, reason: `uses ${used.join(', ') || 'none of the numbers'}` }
  },
} satisfies Verifier
