/** The same task as an environment of rapo train: npx rapo train --config second-answer.yaml */
import { type CountdownAnswer, type Environment, verifyCountdown } from 'rapo'

interface State {
  readonly prompt: string
  readonly answer: CountdownAnswer
}

/** A first answer that is right is worth 1, a second one half. */
const environment: Environment<State> = {
  reset: ({ prompt, answer }) => ({ prompt, answer: answer as CountdownAnswer }),
  step({ prompt, answer }, completion, { turn, isLast }) {
    const { reward, reason } = verifyCountdown(completion, answer)
    if (reward === 1 || isLast) return { done: true, reward: reward / turn, reason }
    return prompt // once more
  },
}
export default environment
