/** The learning rate of each step. */

/** The fields of config.optimizer that determine the learning rate. */
export interface Schedule {
  /** The peak learning rate. */
  readonly learningRate: number
  /** Number of steps over which the learning rate rises from 0. */
  readonly warmupSteps: number
  /** The course after the warm-up; linear and cosine fall to 0. */
  readonly schedule: 'constant' | 'linear' | 'cosine'
}

/** The learning rate of a step: a linear warm-up to the peak, then the schedule. `step` counts from 1 to `steps`. */
export function learningRateAt(step: number, optimizer: Schedule, steps: number): number {
  const { learningRate, warmupSteps, schedule } = optimizer
  if (step <= warmupSteps) return (learningRate * step) / warmupSteps
  const progress = (step - 1 - warmupSteps) / Math.max(1, steps - warmupSteps)
  if (schedule === 'linear') return learningRate * (1 - progress)
  if (schedule === 'cosine') return (learningRate * (1 + Math.cos(Math.PI * progress))) / 2
  return learningRate
}
