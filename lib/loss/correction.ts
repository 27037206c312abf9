/**
 * Off-policy correction, for rollouts whose sampler is not exactly the policy that is trained: another engine, another
 * precision, older weights. The results are weights of the policy term, one per row (LossBatch.policyWeights). Rows are laid
 * out as in LossBatch: sequence b has the rows from sequenceOffsets[b] up to sequenceOffsets[b + 1].
 */
import { invalidValue } from '../base/errors.js'

export const correctionLevels = ['token', 'sequence'] as const
export const outsideChoices = ['truncate', 'mask'] as const

/** The bounds of ratios between the policy that is trained and the policy that sampled: see importanceWeights. */
export interface Correction {
  /** Whether the ratio trainer / sampler is taken of each token, or as a product over each sequence. */
  readonly level: (typeof correctionLevels)[number]
  /** A ratio outside the bounds is moved to the bound (truncated importance sampling), or gets weight 0. */
  readonly outside: (typeof outsideChoices)[number]
  /** Bounds of the ratio, 0 ≤ low ≤ 1 ≤ high. */
  readonly low: number
  readonly high: number
}

/** Log-probs of the same tokens by the policy that is trained and by the sampler. */
export interface SampledRows {
  /** (N) log-probs by the policy that is trained, before its first step on the batch. */
  readonly logprobs: Float32Array
  /** (N) log-probs recorded by the sampler. */
  readonly samplerLogprobs: Float32Array
  /** (B + 1) ascending from 0 to N. */
  readonly sequenceOffsets: Int32Array
}

/** The result of importanceWeights. */
export interface ImportanceWeights {
  /** (N) ≥ 0, for LossBatch.policyWeights. */
  readonly weights: Float32Array
  /** Statistics of the ratios before bounding, over rows (level token) or sequences; 1 if there are none. */
  readonly mean: number
  readonly min: number
  readonly max: number
  /** Share of the ratios that a bound changed; 0 if there are none. */
  readonly truncatedFraction: number
}

/** A larger log-ratio would only be replaced by a bound. */
const MAX_LOG_RATIO = 20

/**
 * Bounded importance weights exp(logprobs − samplerLogprobs), per token or as a product per sequence. Throws
 * ERR_RAPO_INVALID_ARGUMENT for lengths, offsets or bounds that do not fit, and for log-probs that are not finite.
 */
export function importanceWeights(rows: SampledRows, correction: Correction): ImportanceWeights {
  const { level, outside: choice, low, high } = correction
  if (!correctionLevels.includes(level)) invalidValue('level', level, `one of ${correctionLevels.join(', ')}`)
  if (!outsideChoices.includes(choice)) invalidValue('outside', choice, `one of ${outsideChoices.join(', ')}`)
  if (!(low >= 0 && low <= 1)) invalidValue('low', low, 'a number in [0, 1]')
  if (!(high >= 1)) invalidValue('high', high, 'a number ≥ 1')
  const logRatios = differences(rows)
  const weights = new Float32Array(logRatios.length)
  let [count, sum, min, max, outside] = [0, 0, Infinity, -Infinity, 0]
  const weigh = (logRatio: number) => {
    const ratio = Math.exp(Math.min(logRatio, MAX_LOG_RATIO))
    count++
    sum += ratio
    min = Math.min(min, ratio)
    max = Math.max(max, ratio)
    if (ratio >= low && ratio <= high) return ratio
    outside++
    return choice === 'mask' ? 0 : Math.min(high, Math.max(low, ratio))
  }
  for (const [begin, end] of spans(rows.sequenceOffsets)) {
    if (begin === end) continue
    const ratios = logRatios.subarray(begin, end)
    if (level === 'token') {
      for (let i = begin; i < end; ++i) weights[i] = weigh(logRatios[i]!)
    } else {
      weights.fill(weigh(ratios.reduce((x, y) => x + y)), begin, end)
    }
  }
  if (count === 0) return { weights, mean: 1, min: 1, max: 1, truncatedFraction: 0 }
  return { weights, mean: sum / count, min, max, truncatedFraction: outside / count }
}

/**
 * Off-policy sequence masking (DeepSeek-V3.2, arXiv 2512.02556). A sequence gets weight 0 in all its rows if its advantage is
 * negative and its mean of samplerLogprobs − logprobs is above maxDivergence; all other rows get weight 1. Tokens that the
 * policy would hardly write any more need not be made less likely.
 *
 * @param rows the advantages (N) must be equal within a sequence
 * Throws ERR_RAPO_INVALID_ARGUMENT as importanceWeights does, and if the advantages differ within a sequence.
 */
export function offPolicyMask(
  rows: SampledRows & { readonly advantages: Float32Array },
  maxDivergence: number,
): { readonly weights: Float32Array; readonly maskedFraction: number } {
  if (!(maxDivergence >= 0)) invalidValue('maxDivergence', maxDivergence, 'a number ≥ 0')
  const logRatios = differences(rows)
  checkLength('advantages', rows.advantages, logRatios.length)
  rows.advantages.forEach((advantage, i) => {
    if (!Number.isFinite(advantage)) invalidValue(`advantages[${i}]`, advantage, 'a finite number')
  })
  const weights = new Float32Array(logRatios.length).fill(1)
  let [sequences, masked] = [0, 0]
  for (const [begin, end] of spans(rows.sequenceOffsets)) {
    if (begin === end) continue
    sequences++
    const other = rows.advantages.subarray(begin, end).findIndex(x => x !== rows.advantages[begin])
    if (other >= 0) {
      const expected = `${rows.advantages[begin]}, as in the other rows of its sequence`
      invalidValue(`advantages[${begin + other}]`, rows.advantages[begin + other]!, expected)
    }
    const sum = logRatios.subarray(begin, end).reduce((x, y) => x + y)
    if (!(rows.advantages[begin]! < 0 && -sum / (end - begin) > maxDivergence)) continue
    masked++
    weights.fill(0, begin, end)
  }
  return { weights, maskedFraction: sequences === 0 ? 0 : masked / sequences }
}

/** How far the log-probs of sampler and trainer are apart: statistics of |logprobs − samplerLogprobs| over the rows. */
export interface Mismatch {
  /** In nats; 0 if there are no rows. */
  readonly mean: number
  /** The smallest difference that 99 % of the rows do not exceed, in nats; 0 if there are no rows. */
  readonly p99: number
  /** Share of the rows whose ratio trainer / sampler is below 0.9 or above 1.1; 0 if there are no rows. */
  readonly outsideFraction: number
}

/** Throws ERR_RAPO_INVALID_ARGUMENT as importanceWeights does. */
export function mismatch(rows: SampledRows): Mismatch {
  const logRatios = differences(rows)
  const count = logRatios.length
  if (count === 0) return { mean: 0, p99: 0, outsideFraction: 0 }
  const sizes = logRatios.map(Math.abs).sort()
  const outside = logRatios.reduce((sum, x) => sum + (Math.abs(Math.expm1(x)) > 0.1 ? 1 : 0), 0)
  return {
    mean: sizes.reduce((sum, x) => sum + x, 0) / count,
    p99: sizes[Math.ceil(0.99 * count) - 1]!,
    outsideFraction: outside / count,
  }
}

/** logprobs − samplerLogprobs in double. */
function differences({ logprobs, samplerLogprobs, sequenceOffsets }: SampledRows): Float64Array {
  checkLength('samplerLogprobs', samplerLogprobs, logprobs.length)
  const ends = Array.from(sequenceOffsets)
  const ascends = ends.every((offset, b) => offset >= (b === 0 ? 0 : ends[b - 1]!))
  if (ends[0] !== 0 || !ascends || ends.at(-1) !== logprobs.length) {
    invalidValue('sequenceOffsets', `[${ends.join(', ')}]`, `ascending from 0 to ${logprobs.length}`)
  }
  return Float64Array.from(logprobs, (lp, i) => {
    if (!Number.isFinite(lp)) invalidValue(`logprobs[${i}]`, lp, 'a finite number')
    if (!Number.isFinite(samplerLogprobs[i])) {
      invalidValue(`samplerLogprobs[${i}]`, samplerLogprobs[i]!, 'a finite number')
    }
    return lp - samplerLogprobs[i]!
  })
}

function* spans(offsets: Int32Array): Generator<[begin: number, end: number]> {
  for (let b = 0; b + 1 < offsets.length; ++b) yield [offsets[b]!, offsets[b + 1]!]
}

function checkLength(field: string, array: Float32Array, rows: number): void {
  if (array.length !== rows) invalidValue(field, `of length ${array.length}`, `${rows}, as long as logprobs`)
}
