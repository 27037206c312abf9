/**
 * Completions → the arrays that Policy.accumulate takes: which tokens are trained on, how they are averaged, and the shift by one
 * (the model's output at a position is the distribution of the *next* token).
 */
import { invalid } from '../base/errors.js'
import type { Completions, FinishReason, MicroBatch, PackedTokens } from './policy.js'

export const aggregations = ['sequence-mean', 'token-mean', 'constant'] as const
/** How tokens are averaged: by 1/|y_i| per sequence (GRPO), 1/(all tokens) (DAPO) or 1/maxLength (Dr. GRPO). */
export type Aggregation = (typeof aggregations)[number]

/**
 * One sequence to train on: a prompt and a completion, or several turns of them. The arrays, plain or typed, have one
 * length: one entry per token. completionMask is 1 where the token was sampled and is trained on, 0 where the token was
 * given (prompt, a tool's answer). The first token has no prediction, so its mask must be 0.
 */
export interface TrainSequence {
  readonly tokenIds: ArrayLike<number>
  readonly completionMask: ArrayLike<number>
  /** log π_old of the token when it was sampled; read only where the mask is 1. Absent: ratio 1. */
  readonly oldLogprobs?: ArrayLike<number>
  readonly advantage: number
  /** φ of the completion. Absent: 1. */
  readonly refWeight?: number
  /** Factors of the tokens' policy terms; read only where the mask is 1. Absent: 1. */
  readonly policyWeights?: ArrayLike<number>
  /** Factor of the weights of the sequence's tokens (LUSPO: the sequence's length). Absent: 1. */
  readonly weight?: number
}

/** Prompt and completion as one sequence whose mask covers the completion. oldLogprobs: one per completion token. */
export function toSequence(
  promptIds: ArrayLike<number>,
  completionIds: ArrayLike<number>,
  rest: { advantage: number; refWeight?: number; oldLogprobs?: ArrayLike<number> },
): TrainSequence {
  const zeros = Array.from(promptIds, () => 0)
  const { oldLogprobs, ...perSequence } = rest
  return {
    tokenIds: [...Array.from(promptIds), ...Array.from(completionIds)],
    completionMask: [...zeros, ...Array.from(completionIds, () => 1)],
    ...(oldLogprobs && { oldLogprobs: [...zeros, ...Array.from(oldLogprobs)] }),
    ...perSequence,
  }
}

/**
 * Lays sequences end to end and makes one row per trained token. weights (from tokenWeights): one per sequence, the weight
 * of each of its trained tokens. Throws ERR_RAPO_INVALID_ARGUMENT, which names the sequence, if lengths or values do not fit.
 *
 * packBatch([{ tokenIds: [5, 6, 7, 2], completionMask: [0, 0, 1, 1], oldLogprobs: [0, 0, -1, -2], advantage: .7 },
 *            { tokenIds: [5, 2],       completionMask: [0, 1],       oldLogprobs: [0, -3],        advantage: -.7 }],
 *           [.25, .5]) →
 *
 *     sequences.tokenIds  5 6 7 2 5 2    sequences.offsets  0 4 6
 *     row            0    1    2
 *     rowPositions   1    2    4      where the row's token is predicted: one before it
 *     tokenIds       7    2    2
 *     tokenWeights  .25  .25  .5
 *     advantages    .7   .7  -.7
 *     oldLogprobs   -1   -2   -3
 */
export function packBatch(sequences: readonly TrainSequence[], weights: ArrayLike<number>): MicroBatch {
  checkWeights(sequences, weights)
  const rowPositions: number[] = []
  const tokenIds: number[] = []
  const rowWeights: number[] = []
  const advantages: number[] = []
  const refWeights: number[] = []
  const oldLogprobs: number[] = []
  const policyWeights: number[] = []
  let offset = 0
  for (const [b, sequence] of sequences.entries()) {
    checkSequence(sequence, b)
    for (let t = 0; t < sequence.tokenIds.length; t++) {
      if (!sequence.completionMask[t]) continue
      rowPositions.push(offset + t - 1)
      tokenIds.push(sequence.tokenIds[t]!)
      rowWeights.push(weights[b]!)
      advantages.push(sequence.advantage)
      refWeights.push(sequence.refWeight ?? 1)
      if (sequence.oldLogprobs) oldLogprobs.push(sequence.oldLogprobs[t]!)
      policyWeights.push(sequence.policyWeights?.[t] ?? 1)
    }
    offset += sequence.tokenIds.length
  }
  if (oldLogprobs.length !== 0 && oldLogprobs.length !== tokenIds.length) {
    invalid('oldLogprobs must be given for all sequences or for none')
  }
  return {
    sequences: packTokens(sequences.map(sequence => sequence.tokenIds)),
    rowPositions: Int32Array.from(rowPositions),
    tokenIds: Int32Array.from(tokenIds),
    tokenWeights: Float32Array.from(rowWeights),
    advantages: Float32Array.from(advantages),
    ...(sequences.some(sequence => sequence.refWeight !== undefined) && {
      refWeights: Float32Array.from(refWeights),
    }),
    ...(oldLogprobs.length > 0 && { oldLogprobs: Float32Array.from(oldLogprobs) }),
    ...(sequences.some(sequence => sequence.policyWeights) && {
      policyWeights: Float32Array.from(policyWeights),
    }),
  }
}

/** An Int32Array would turn larger ids into other ids. */
const MOST_ID = 2 ** 31 - 1

/** packTokens([[5, 6], [7]]) → tokenIds 5 6 7, offsets 0 2 3 */
export function packTokens(lists: readonly ArrayLike<number>[]): PackedTokens {
  const offsets = new Int32Array(lists.length + 1)
  for (const [b, list] of lists.entries()) {
    const bad = findIndex(list, id => !(Number.isInteger(id) && id >= 0 && id <= MOST_ID))
    if (bad >= 0) faultOf(b, `tokenIds[${bad}] is ${list[bad]}, expected a whole number in [0, 2^31)`)
    offsets[b + 1] = offsets[b]! + list.length
  }
  const tokenIds = new Int32Array(offsets[lists.length]!)
  for (const [b, list] of lists.entries()) tokenIds.set(list, offsets[b])
  return { tokenIds, offsets }
}

/** One completion of Completions. */
export interface Completion {
  readonly tokenIds: Int32Array
  /** log π of each token when it was sampled. */
  readonly logprobs: Float32Array
  readonly finishReason: FinishReason
}

/** Splits the result of Policy.generate into single completions, in the same order, as copies. */
export function unpackCompletions({ tokens, logprobs, finishReasons }: Completions): Completion[] {
  return finishReasons.map((finishReason, i) => {
    const [start, end] = [tokens.offsets[i]!, tokens.offsets[i + 1]!]
    return {
      tokenIds: tokens.tokenIds.slice(start, end),
      logprobs: logprobs.slice(start, end),
      finishReason,
    }
  })
}

/**
 * The weight of each trained token in the loss of one optimizer step, one number per sequence: Σ weight · x over the rows is
 * the mean that the aggregation names. Pass all sequences of the step, before any split.
 *
 * Two sequences of 3 and 1 trained tokens, maxLength 4:
 *
 *     sequence-mean   1/2 · 1/3, 1/2 · 1/1    every completion counts the same
 *     token-mean      1/4,       1/4          every token counts the same
 *     constant        1/2 · 1/4, 1/2 · 1/4    as token-mean, but for a fixed length
 *
 * A sequence's own weight multiplies its share; the denominators do not depend on it. Throws ERR_RAPO_INVALID_ARGUMENT for
 * an unknown aggregation, a weight that is not finite, and a maxLength below 1 where it is read.
 *
 * @param maxLength sampling.maxNewTokens; only `constant` reads it
 */
export function tokenWeights(
  sequences: readonly Pick<TrainSequence, 'completionMask' | 'weight'>[],
  aggregation: Aggregation,
  maxLength: number,
): number[] {
  if (!aggregations.includes(aggregation)) {
    invalid(`aggregation is ${aggregation}, expected one of ${aggregations.join(', ')}`)
  }
  if (aggregation === 'constant' && !(maxLength >= 1 && maxLength < Infinity)) {
    invalid(`maxLength is ${maxLength}, expected a number >= 1`)
  }
  const lengths = sequences.map(trainedLength)
  const total = lengths.reduce((sum, length) => sum + length, 0)
  return lengths.map((length, b) => {
    if (length === 0) return 0
    const weight = sequences[b]!.weight ?? 1
    if (!Number.isFinite(weight)) faultOf(b, `weight is ${weight}, expected a finite number`)
    if (aggregation === 'token-mean') return weight / total
    return weight / (lengths.length * (aggregation === 'constant' ? maxLength : length))
  })
}

/**
 * Splits the sequences of one optimizer step, in their order, into micro-batches of at most maxTokens tokens; a longer
 * sequence is a micro-batch of its own. Nothing is padded. If neighbouring sequences share a prompt, its tokens are computed
 * and counted once per micro-batch, so keep groups together. The gradients of the parts add up to that of the whole batch.
 */
export function splitBatch(
  sequences: readonly TrainSequence[],
  weights: ArrayLike<number>,
  maxTokens: number,
): MicroBatch[] {
  if (!(maxTokens >= 1)) invalid(`maxTokens is ${maxTokens}, expected a number >= 1`)
  checkWeights(sequences, weights)
  for (const [b, sequence] of sequences.entries()) checkSequence(sequence, b)
  const parts: number[][] = []
  let tokens = 0
  let prompt: number[] = []
  for (const [b, { tokenIds, completionMask }] of sequences.entries()) {
    const first = findIndex(completionMask, mask => mask !== 0)
    if (first < 0) continue
    const isShared = prompt.length === first && prompt.every((id, t) => id === tokenIds[t])
    const more = tokenIds.length - (isShared ? first : 0)
    if (parts.length === 0 || tokens + more > maxTokens) {
      parts.push([])
      tokens = tokenIds.length
    } else {
      tokens += more
    }
    parts.at(-1)!.push(b)
    prompt = Array.from({ length: first }, (_, t) => tokenIds[t]!)
  }
  return parts.map(part =>
    packBatch(
      part.map(b => sequences[b]!),
      part.map(b => weights[b]!),
    ),
  )
}

/** Cuts items into `parts` runs whose sizes differ by at most one: the mini-batches of several optimizer steps. */
export function splitEvenly<T>(items: readonly T[], parts: number): T[][] {
  if (!(Number.isSafeInteger(parts) && parts >= 0 && (parts > 0 || items.length === 0))) {
    invalid(`parts is ${parts}, expected a whole number >= 1`)
  }
  const cut = (part: number) => Math.round((part * items.length) / parts)
  return Array.from({ length: parts }, (_, part) => items.slice(cut(part), cut(part + 1)))
}

/** The arrays end to end. */
export function concat(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0))
  let offset = 0
  for (const part of parts) {
    all.set(part, offset)
    offset += part.length
  }
  return all
}

/** Number of trained tokens of a sequence, which is the number of its rows in packBatch's arrays. */
export function trainedLength({ completionMask }: Pick<TrainSequence, 'completionMask'>): number {
  return Array.from(completionMask).filter(mask => mask).length
}

function checkSequence(sequence: TrainSequence, b: number): void {
  const { tokenIds, completionMask } = sequence
  for (const field of ['completionMask', 'oldLogprobs', 'policyWeights'] as const) {
    const { length } = sequence[field] ?? tokenIds
    if (length !== tokenIds.length) {
      faultOf(b, `the length of ${field} is ${length}, that of tokenIds ${tokenIds.length}`)
    }
  }
  const bad = findIndex(completionMask, mask => mask !== 0 && mask !== 1)
  if (bad >= 0) faultOf(b, `completionMask[${bad}] is ${completionMask[bad]}, expected 0 or 1`)
  if (completionMask[0]) faultOf(b, 'completionMask[0] must be 0: nothing predicts the first token')
}

function checkWeights(sequences: readonly TrainSequence[], weights: ArrayLike<number>): void {
  if (weights.length !== sequences.length) {
    invalid(`the length of weights is ${weights.length}, that of sequences ${sequences.length}`)
  }
  const bad = findIndex(weights, weight => !Number.isFinite(weight))
  if (bad >= 0) faultOf(bad, `its token weight is ${weights[bad]}, expected a finite number`)
}

function findIndex(values: ArrayLike<number>, fits: (value: number) => boolean): number {
  for (let i = 0; i < values.length; i++) if (fits(values[i]!)) return i
  return -1
}

function faultOf(b: number, why: string): never {
  invalid(`sequence ${b}: ${why}`)
}
