/** Rewards → advantages and reference weights φ(r), one a completion (docs/objective.md). */
import { RapoError } from './errors.js'

/** Keeps a group whose rewards hardly differ from exploding. */
const STD_EPSILON = 1e-6

/**
 * A_i = (r_i − mean of its group) / (std of its group + 1e-6), the std with n − 1 as TRL and verl take it; without
 * `standardize` (Dr. GRPO) only r_i − mean. A group whose rewards are all equal gets exactly 0.
 *
 * groupAdvantages([1, 0], 2): mean .5, std √½ → [.7071, −.7071] (to 1e-6)
 *
 * @param rewards one a completion, group after group: length = groups × groupSize
 */
export function groupAdvantages(rewards: readonly number[], groupSize: number, standardize = true): number[] {
  if (!(groupSize >= 1) || rewards.length % groupSize !== 0) {
    throw new RapoError(
      'ERR_RAPO_INVALID_ARGUMENT',
      `${rewards.length} rewards are not whole groups of groupSize ${groupSize}`,
    )
  }
  const advantages: number[] = []
  for (let start = 0; start < rewards.length; start += groupSize) {
    const group = rewards.slice(start, start + groupSize)
    if (isUniform(group)) {
      advantages.push(...group.map(() => 0))
      continue
    }
    const { mean, std } = moments(group, 1)
    const scale = standardize ? std + STD_EPSILON : 1
    advantages.push(...group.map(reward => (reward - mean) / scale))
  }
  return advantages
}

/** Share of the groups whose rewards are all equal: they teach nothing but the penalty. */
export function zeroAdvantageFraction(rewards: readonly number[], groupSize: number): number {
  let groups = 0
  let uniform = 0
  for (let start = 0; start < rewards.length; start += groupSize) {
    groups++
    if (isUniform(rewards.slice(start, start + groupSize))) uniform++
  }
  return uniform / groups
}

export interface PhiRange {
  /** φ of a completion with reward rMin or less, in [0, 1]. */
  readonly phiMin: number
  /** φ of a completion with reward rMax or more, in [phiMin, 1]. */
  readonly phiMax: number
  readonly rMin: number
  readonly rMax: number
}

/**
 * φ(r) for each reward: linear from phiMin at rMin to phiMax at rMax, constant outside; or a function of your own,
 * whose values must lie in [0, 1].
 *
 * referenceWeights([0, .5], { phiMin: .6, phiMax: 1, rMin: 0, rMax: 1 }) → [.6, .8]
 */
export function referenceWeights(
  rewards: readonly number[],
  phi: PhiRange | ((reward: number) => number),
): number[] {
  const weightOf = typeof phi === 'function' ? phi : (reward: number) => linear(reward, phi)
  return rewards.map(reward => {
    const weight = weightOf(reward)
    if (!(weight >= 0 && weight <= 1)) {
      throw new RapoError('ERR_RAPO_INVALID_ARGUMENT', `φ(${reward}) is ${weight}; it must lie in [0, 1]`)
    }
    return weight
  })
}

function linear(reward: number, { phiMin, phiMax, rMin, rMax }: PhiRange): number {
  const fraction = Math.min(1, Math.max(0, (reward - rMin) / (rMax - rMin)))
  return phiMin + (phiMax - phiMin) * fraction
}

function isUniform(group: readonly number[]): boolean {
  return group.every(reward => reward === group[0])
}

/** Mean, and standard deviation with count − correction in the denominator. */
export function moments(values: readonly number[], correction = 0): { mean: number; std: number } {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0)
  return { mean, std: Math.sqrt(squares / Math.max(1, values.length - correction)) }
}
