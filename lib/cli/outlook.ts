/** How long a training run will still take, saving and evaluations included. */
import type { Config } from '../config/config.js'
import type { StepMetrics } from '../train/metrics.js'

/** Steps over which the seconds of a step are averaged: recent ones, since steps get slower as completions grow. */
const RECENT = 10

export interface TrainingOutlook {
  /** Number of steps done. */
  readonly done: number
  start(stepsDone: number): void
  evaluated(evaluation: { readonly seconds: number }): void
  /** Milliseconds left after the step with these metrics. Of saving and evaluating, what is known so far. */
  stepped(metrics: Pick<StepMetrics, 'step' | 'seconds'>): number
}

export function trainingOutlook({ run, eval: { every } }: Config): TrainingOutlook {
  let done = 0
  const recent: number[] = []
  let save = 0
  let evaluation = 0
  /** Multiples of `interval` after `step`, and the last step where it is none. */
  const occasions = (step: number, interval: number) =>
    Math.ceil(run.steps / interval) - Math.floor(step / interval)
  return {
    get done() {
      return done
    },
    start(stepsDone) {
      done = stepsDone
    },
    evaluated({ seconds }) {
      evaluation = seconds
    },
    stepped({ step, seconds }) {
      done = step
      recent.push(seconds.rollout + seconds.score + seconds.train)
      if (recent.length > RECENT) recent.shift()
      if (seconds.save > 0) save = seconds.save
      const mean = recent.reduce((sum, value) => sum + value, 0) / recent.length
      const left = run.steps - step
      if (left <= 0) return 0
      const evaluations = every > 0 ? occasions(step, every) : 0
      return 1000 * (left * mean + occasions(step, run.saveEvery) * save + evaluations * evaluation)
    },
  }
}
