/** The environment `countdown-calculator`: docs/environments.md states the rules. */
import { type CountdownAnswer, calculate, countdown, verifyCountdown } from './countdown.js'
import type { Environment } from './environment.js'

/** A completion that ends in = asks for the value of what stands before it. Any other completion is the answer. */
export const countdownCalculator: Environment<CountdownAnswer> = {
  checkAnswer: countdown.checkAnswer,
  reset: problem => problem.answer as CountdownAnswer,
  step(answer, completion) {
    const [, question] = /^(.*)=\s*$/s.exec(completion) ?? []
    if (question === undefined) {
      const { reward, reason } = verifyCountdown(completion, answer)
      return { done: true, reward, reason }
    }
    const result = calculate(question)
    if ('value' in result) return `${result.value}:`
    return { done: true, reward: 0, reason: `the calculator cannot tell: ${result.fault}` }
  },
}
