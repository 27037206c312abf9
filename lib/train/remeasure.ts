/**
 * Measures the log-probs and entropies of a batch of rollouts with the policy that is about to be trained on it. This takes
 * another forward pass, and is done only for the options that need it.
 */
import { RapoError } from '../base/errors.js'
import type { Config } from '../config/config.js'
import { importanceWeights, mismatch, offPolicyMask, type SampledRows } from '../loss/correction.js'
import { adaptEntropyCoef, topEntropyWeights } from '../loss/entropy.js'
import { concat, packBatch, splitEvenly, type TrainSequence, trainedLength } from '../model/batch.js'
import type { CallOptions, Policy } from '../model/policy.js'
import type { World } from '../world/world.js'
import type { Remeasured as Metrics } from './metrics.js'
import { ownPart } from './share.js'

export interface Remeasured {
  /** With policy weights, and with the policy's own log-probs as old log-probs, if the configuration asks for them. */
  readonly sequences: readonly TrainSequence[]
  /** β of this batch, and the coefficient for the next batch. */
  readonly entropyCoef: number
  readonly nextEntropyCoef: number
  readonly metrics: Metrics
}

/**
 * Each rank of the world measures its part of the groups; all get all.
 * @param sequences whole groups, with the sampler's log-probs
 * @param entropyCoef the coefficient from the batch before
 */
export async function remeasure(
  { policy, world }: { readonly policy: Pick<Policy, 'logprobs'>; readonly world: World },
  sequences: readonly TrainSequence[],
  config: Config,
  entropyCoef: number,
  options: CallOptions = {},
): Promise<Remeasured> {
  const { correction, objective, rollouts } = config
  const { entropyTarget: target, topEntropyFraction } = objective
  const isCorrected = correction.level !== 'off'
  const isCompared = rollouts.engine !== 'local'
  const isNeeded =
    isCorrected ||
    isCompared ||
    correction.maxDivergence !== undefined ||
    target !== undefined ||
    topEntropyFraction < 1
  // All completions of a batch may be masked.
  const isEmpty = !sequences.some(sequence => trainedLength(sequence) > 0)
  if (!isNeeded || isEmpty) return { sequences, entropyCoef, nextEntropyCoef: entropyCoef, metrics: {} }

  const pack = (some: readonly TrainSequence[]) =>
    packBatch(
      some,
      some.map(() => 1),
    )
  const groups = splitEvenly(sequences, sequences.length / config.sampling.groupSize)
  const parts = await world.gather('log-probs of the batch', async () => {
    const own = pack(ownPart(groups, world).part.flat())
    if (own.tokenIds.length === 0) return { logprobs: new Float32Array(), entropy: new Float32Array() }
    return policy.logprobs(own.sequences, own, config.sampling.temperature, options)
  })
  const logprobs = concat(parts.map(part => part.logprobs))
  const entropy = concat(parts.map(part => part.entropy))
  const batch = pack(sequences)
  const sequenceOffsets = rowOffsets(sequences)
  const rows = {
    logprobs,
    samplerLogprobs: batch.oldLogprobs!,
    sequenceOffsets,
    advantages: batch.advantages,
  }
  const weights = topEntropyWeights(entropy, topEntropyFraction)
  const multiply = (factors: Float32Array) => {
    for (const [i, factor] of factors.entries()) weights[i]! *= factor
  }
  const metrics: Metrics = isCompared ? mismatchOf(rows, rollouts.maxMismatch) : {}
  if (correction.level !== 'off') {
    const importance = importanceWeights(rows, correction)
    multiply(importance.weights)
    metrics.importanceMean = importance.mean
    metrics.importanceMin = importance.min
    metrics.importanceMax = importance.max
    metrics.importanceTruncatedFraction = importance.truncatedFraction
  }
  if (correction.maxDivergence !== undefined) {
    const mask = offPolicyMask(rows, correction.maxDivergence)
    multiply(mask.weights)
    metrics.maskedFraction = mask.maskedFraction
  }
  let next = { entropyCoef, next: entropyCoef }
  if (target !== undefined) {
    const mean = entropy.reduce((sum, x) => sum + x, 0) / Math.max(1, entropy.length)
    next = adaptEntropyCoef(entropyCoef, mean, { target, step: objective.entropyStep! })
    metrics.entropyCoef = next.entropyCoef
  }
  const isWeighted = weights.some(weight => weight !== 1)
  const remeasured = sequences.map((sequence, b) => {
    const spread = (values: Float32Array) =>
      spreadRows(sequence, values.subarray(sequenceOffsets[b], sequenceOffsets[b + 1]))
    return {
      ...sequence,
      ...(isCorrected && { oldLogprobs: spread(logprobs) }),
      ...(isWeighted && { policyWeights: spread(weights) }),
    }
  })
  return { sequences: remeasured, entropyCoef: next.entropyCoef, nextEntropyCoef: next.next, metrics }
}

/** Throws ERR_RAPO_IO where sampler and policy are too far apart to train on. */
function mismatchOf(rows: SampledRows, limit: number): Metrics {
  const { mean, p99, outsideFraction } = mismatch(rows)
  if (mean <= limit) return { mismatchMean: mean, mismatchP99: p99, mismatchOutsideFraction: outsideFraction }
  throw new RapoError(
    'ERR_RAPO_IO',
    `the log-probs of the step's rollouts differ from the policy's by ${mean.toPrecision(3)} nats a token on average; rollouts.maxMismatch allows ${limit}: the servers sample from another distribution than the policy's`,
  )
}

/** (B + 1) offsets of the sequences' rows in packBatch's arrays. */
function rowOffsets(sequences: readonly TrainSequence[]): Int32Array {
  const offsets = new Int32Array(sequences.length + 1)
  for (const [b, sequence] of sequences.entries()) offsets[b + 1] = offsets[b]! + trainedLength(sequence)
  return offsets
}

/** Spreads one value per trained token over all tokens; 0 for tokens that are not trained. */
function spreadRows({ completionMask }: TrainSequence, values: Float32Array): number[] {
  let row = 0
  return Array.from(completionMask, mask => (mask ? values[row++]! : 0))
}
