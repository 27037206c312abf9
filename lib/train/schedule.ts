/** The learning rate of each step. */

/** Of config.optimizer. */
export interface Schedule {
  /** The peak. */
  readonly learningRate: number
  /** Steps over which the learning rate rises from 0. */
  readonly warmupSteps: number
  /** After the warm-up. */
  readonly schedule: 'constant' | 'linear' | 'cosine'
}

/** Linear warm-up to the peak, then the schedule. step counts from 1, up to `steps`. */
export function learningRateAt(step: number, optimizer: Schedule, steps: number): number {
  const { learningRate, warmupSteps, schedule } = optimizer
  if (step <= warmupSteps) return (learningRate * step) / warmupSteps
  const progress = (step - 1 - warmupSteps) / Math.max(1, steps - warmupSteps)
  if (schedule === 'linear') return learningRate * (1 - progress)
  if (schedule === 'cosine') return (learningRate * (1 + Math.cos(Math.PI * progress))) / 2
  return learningRate
}
