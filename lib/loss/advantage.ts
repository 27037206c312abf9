/** Rewards → advantages and reference weights φ(r), one per completion (docs/objective.md). */
import { invalid } from '../base/errors.js'
import { moments } from '../base/stats.js'
import { rapoPhi } from './objective.js'

/** Keeps the advantages of a group whose rewards hardly differ from becoming huge. */
const STD_EPSILON = 1e-6

/**
 * The number that is subtracted from a reward: the mean of its group (GRPO), or the mean of the other rewards in the group
 * (RLOO, arXiv 2402.14740).
 */
export const advantageBaselines = ['group-mean', 'leave-one-out'] as const
/** A baseline by its name. */
export type AdvantageBaseline = (typeof advantageBaselines)[number]

/**
 * The divisor of the difference, to which 1e-6 is added: the group's standard deviation with n − 1 (SimpleRL, TRL, verl) or
 * with n (DeepSeekMath). `none` does not divide (Dr. GRPO, RLOO).
 */
export const advantageScales = ['sample-std', 'population-std', 'none'] as const
/** A scale by its name. */
export type AdvantageScale = (typeof advantageScales)[number]

/** How groupAdvantages compares a reward with its group. */
export interface AdvantageOptions {
  /** Default group-mean. */
  readonly baseline?: AdvantageBaseline
  /** Default sample-std. */
  readonly scale?: AdvantageScale
}

/**
 * A_i = (r_i − baseline) / (scale + 1e-6). A group whose rewards are all equal gets exactly 0.
 *
 * groupAdvantages([1, 0], 2): mean .5, std √½ → [.7071, −.7071] (to 1e-6)
 *
 * @param rewards one a completion, group after group: length = groups × groupSize
 * Throws ERR_RAPO_INVALID_ARGUMENT where they are not whole groups, or a group of one leaves none for leave-one-out.
 */
export function groupAdvantages(
  rewards: ArrayLike<number>,
  groupSize: number,
  { baseline = 'group-mean', scale = 'sample-std' }: AdvantageOptions = {},
): number[] {
  oneOf('baseline', baseline, advantageBaselines)
  oneOf('scale', scale, advantageScales)
  checkGroups(rewards, groupSize)
  checkRewards(rewards)
  if (groupSize === 1 && baseline === 'leave-one-out') {
    invalid('groupSize is 1, but leave-one-out needs groups of 2 or more')
  }
  // r − mean of the others = (r − mean) · G / (G − 1)
  const stretch = baseline === 'leave-one-out' ? groupSize / (groupSize - 1) : 1
  const advantages: number[] = []
  for (let start = 0; start < rewards.length; start += groupSize) {
    const group = groupOf(rewards, start, groupSize)
    if (isUniform(group)) {
      advantages.push(...group.map(() => 0))
      continue
    }
    const { mean, std } = moments(group, scale === 'sample-std' ? 1 : 0)
    if (!Number.isFinite(mean) || !Number.isFinite(std)) {
      invalid(`rewards[${start}] and those of its group are too large: ${group.join(', ')}`)
    }
    const divisor = scale === 'none' ? 1 : std + STD_EPSILON
    advantages.push(...group.map(reward => ((reward - mean) * stretch) / divisor))
  }
  return advantages
}

/**
 * How several rewards become one advantage, by TRL's names. sum-then-normalize: A of the weighted sum of the rewards.
 * normalize-then-sum: the weighted sum of each reward's own A, divided by the standard deviation of that sum over the
 * whole batch, plus 1e-6 (GDPO, arXiv 2601.05242).
 */
export const multiObjectiveAggregations = ['sum-then-normalize', 'normalize-then-sum'] as const
/** An aggregation by its name. */
export type MultiObjectiveAggregation = (typeof multiObjectiveAggregations)[number]

/** One of several rewards of the same completions. */
export interface WeightedRewards {
  /** One a completion, group after group. */
  readonly rewards: ArrayLike<number>
  readonly weight: number
}

/**
 * The advantages of completions with several rewards. A group gets exactly 0 where its sums, or with normalize-then-sum
 * all its rewards of a weight other than 0, are equal. Throws as groupAdvantages does.
 */
export function multiObjectiveAdvantages(
  parts: readonly WeightedRewards[],
  groupSize: number,
  options: AdvantageOptions & { readonly aggregation?: MultiObjectiveAggregation } = {},
): number[] {
  const { aggregation = 'sum-then-normalize', ...perGroup } = options
  oneOf('aggregation', aggregation, multiObjectiveAggregations)
  for (const [i, { weight }] of parts.entries()) {
    if (!Number.isFinite(weight)) invalid(`the weight of part ${i} is ${weight}; it must be a finite number`)
  }
  if (aggregation === 'sum-then-normalize') return groupAdvantages(weightedSums(parts), groupSize, perGroup)
  const normalized = parts.map(({ rewards, weight }) => ({
    rewards: groupAdvantages(rewards, groupSize, perGroup),
    weight,
  }))
  const sums = weightedSums(normalized)
  const { std } = moments(sums, 1)
  // The mean of the sums is 0 already.
  return sums.map(sum => sum / (std + STD_EPSILON))
}

/** Σ weight · reward of each completion. Throws ERR_RAPO_INVALID_ARGUMENT where the parts differ in length. */
function weightedSums(parts: readonly WeightedRewards[]): number[] {
  const [first, ...others] = parts
  if (!first) invalid('there must be one part at least')
  const bad = others.find(({ rewards }) => rewards.length !== first.rewards.length)
  if (bad)
    invalid(
      `the length of rewards is ${bad.rewards.length} in a part, and ${first.rewards.length} in the first`,
    )
  return Array.from(first.rewards, (reward, i) =>
    others.reduce((sum, { rewards, weight }) => sum + weight * rewards[i]!, first.weight * reward),
  )
}

/** Share of the groups whose rewards are all equal, which give no policy gradient. 0 if there are no groups. */
export function zeroAdvantageFraction(rewards: ArrayLike<number>, groupSize: number): number {
  checkGroups(rewards, groupSize)
  let groups = 0
  let uniform = 0
  for (let start = 0; start < rewards.length; start += groupSize) {
    groups++
    if (isUniform(groupOf(rewards, start, groupSize))) uniform++
  }
  return uniform / Math.max(1, groups)
}

export const phiShapes = ['linear', 'step'] as const

/** φ(r), the reference weight of a completion by its reward. */
export type PhiRange =
  | {
      /** From phiMin at rMin to phiMax at rMax, constant outside. */
      readonly shape?: 'linear'
      /** φ of a completion with reward rMin or less, in [0, 1]. */
      readonly phiMin: number
      /** φ of a completion with reward rMax or more, in [phiMin, 1]. */
      readonly phiMax: number
      readonly rMin: number
      readonly rMax: number
    }
  | {
      /** phiMin below rMax, phiMax from there on. */
      readonly shape: 'step'
      readonly phiMin: number
      readonly phiMax: number
      readonly rMax: number
    }

/**
 * φ(r) for each reward: linear, a step, or a function of your own; by default RAPO's. Throws ERR_RAPO_INVALID_ARGUMENT if a
 * reward is not finite, a value is outside [0, 1], the shape is unknown or the range is not ascending.
 *
 * referenceWeights([0, .5], { phiMin: .6, phiMax: 1, rMin: 0, rMax: 1 }) → [.6, .8]
 */
export function referenceWeights(
  rewards: ArrayLike<number>,
  phi: PhiRange | ((reward: number) => number) = rapoPhi,
): number[] {
  const weightOf = typeof phi === 'function' ? phi : phiFunction(phi)
  checkRewards(rewards)
  return Array.from(rewards, reward => {
    const weight = weightOf(reward)
    if (!(weight >= 0 && weight <= 1)) invalid(`φ(${reward}) is ${weight}, expected a number in [0, 1]`)
    return weight
  })
}

/**
 * The values of completions, such as advantages and reference weights, as an array with one entry per row of a LossBatch.
 * sequenceOffsets: completion b has the rows from entry b up to entry b + 1. Throws ERR_RAPO_INVALID_ARGUMENT if the offsets
 * do not ascend from 0, or are not one more than the values.
 *
 * perRow([.7, -.7], [0, 2, 3]) → .7 .7 -.7
 */
export function perRow(values: ArrayLike<number>, sequenceOffsets: ArrayLike<number>): Float32Array {
  const count = values.length
  if (sequenceOffsets.length !== count + 1) {
    invalid(
      `sequenceOffsets has ${sequenceOffsets.length} elements, expected ${count + 1} for ${count} values`,
    )
  }
  for (let b = 0; b <= count; b++) {
    const [offset, least] = [sequenceOffsets[b]!, b === 0 ? 0 : sequenceOffsets[b - 1]!]
    if (!(Number.isSafeInteger(offset) && (b === 0 ? offset === 0 : offset >= least))) {
      invalid(`sequenceOffsets[${b}] is ${offset}, expected ${b === 0 ? '0' : `a whole number >= ${least}`}`)
    }
  }
  const rows = new Float32Array(sequenceOffsets[count]!)
  for (let b = 0; b < count; b++) rows.fill(values[b]!, sequenceOffsets[b], sequenceOffsets[b + 1])
  return rows
}

function phiFunction(phi: PhiRange): (reward: number) => number {
  const { shape = 'linear', phiMin, phiMax, rMax } = phi
  oneOf('shape', shape, phiShapes)
  if (!(phiMin <= phiMax)) invalid(`phiMin is ${phiMin}, expected at most phiMax = ${phiMax}`)
  if (!(phiMin >= 0)) invalid(`phiMin is ${phiMin}, expected a number in [0, 1]`)
  if (!(phiMax <= 1)) invalid(`phiMax is ${phiMax}, expected a number in [0, 1]`)
  if (!Number.isFinite(rMax)) invalid(`rMax is ${rMax}, expected a finite number`)
  if (phi.shape === 'step') return reward => (reward >= rMax ? phiMax : phiMin)
  const { rMin } = phi
  if (!Number.isFinite(rMin)) invalid(`rMin is ${rMin}, expected a finite number`)
  if (!(rMin < rMax)) invalid(`rMin is ${rMin}, expected less than rMax = ${rMax}`)
  return reward => phiMin + (phiMax - phiMin) * Math.min(1, Math.max(0, (reward - rMin) / (rMax - rMin)))
}

function checkGroups(rewards: ArrayLike<number>, groupSize: number): void {
  if (!(Number.isSafeInteger(groupSize) && groupSize >= 1) || rewards.length % groupSize !== 0) {
    invalid(`the length of rewards is ${rewards.length}, no multiple of groupSize ${groupSize}`)
  }
}

function checkRewards(rewards: ArrayLike<number>): void {
  const bad = Array.from(rewards).findIndex(reward => !Number.isFinite(reward))
  if (bad >= 0) invalid(`rewards[${bad}] is ${rewards[bad]}; it must be a finite number`)
}

function oneOf(field: string, value: string, names: readonly string[]): void {
  if (!names.includes(value)) invalid(`${field} is ${value}, expected one of ${names.join(', ')}`)
}

function groupOf(rewards: ArrayLike<number>, start: number, groupSize: number): number[] {
  return Array.from({ length: groupSize }, (_, i) => rewards[start + i]!)
}

function isUniform(group: readonly number[]): boolean {
  return group.every(reward => reward === group[0])
}
