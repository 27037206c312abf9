import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { createRandom } from '../../lib/base/random.js'
import {
  type aggregations,
  packBatch,
  packTokens,
  splitBatch,
  splitEvenly,
  type TrainSequence,
  tokenWeights,
  toSequence,
  unpackCompletions,
} from '../../lib/model/batch.js'
import type { MicroBatch } from '../../lib/model/policy.js'

const two: TrainSequence[] = [
  {
    tokenIds: [5, 6, 7, 2],
    completionMask: [0, 0, 1, 1],
    oldLogprobs: [0, 0, -1, -2],
    advantage: 0.5,
    refWeight: 1,
  },
  { tokenIds: [5, 2], completionMask: [0, 1], oldLogprobs: [0, -3], advantage: -0.5, refWeight: 0.25 },
]

test('two sequences by hand: every row is predicted one position before its token', () => {
  assert.equal(packBatch(two, [0.25, 0.5]), {
    sequences: { tokenIds: Int32Array.of(5, 6, 7, 2, 5, 2), offsets: Int32Array.of(0, 4, 6) },
    rowPositions: Int32Array.of(1, 2, 4),
    tokenIds: Int32Array.of(7, 2, 2),
    tokenWeights: Float32Array.of(0.25, 0.25, 0.5),
    advantages: Float32Array.of(0.5, 0.5, -0.5),
    refWeights: Float32Array.of(1, 1, 0.25),
    oldLogprobs: Float32Array.of(-1, -2, -3),
  } satisfies MicroBatch)
})

test('typed arrays give what lists give', () => {
  const typed = two.map(({ tokenIds, completionMask, oldLogprobs, ...rest }) => ({
    ...rest,
    tokenIds: Int32Array.from(tokenIds),
    completionMask: Uint8Array.from(completionMask),
    oldLogprobs: Float32Array.from(oldLogprobs!),
  }))
  const weights = tokenWeights(two, 'sequence-mean', 4)
  assert.equal(tokenWeights(typed, 'sequence-mean', 4), weights)
  assert.equal(splitBatch(typed, Float64Array.from(weights), 4), splitBatch(two, weights, 4))
  assert.equal(packTokens(typed.map(({ tokenIds }) => tokenIds)), packBatch(two, weights).sequences)
  assert.throws(() => packBatch(typed, Float32Array.of(1, Number.NaN)), /sequence 1: its token weight is NaN/)
})

test('policy weights go with their tokens; a weight of a sequence scales its tokens', () => {
  const weighted = [{ ...two[0]!, policyWeights: [9, 9, 0.5, 2] }, two[1]!]
  assert.equal(packBatch(weighted, [1, 1]).policyWeights, Float32Array.of(0.5, 2, 1))
  assert.throws(
    () => packBatch([{ ...two[0]!, policyWeights: [1] }], [1]),
    /sequence 0: the length of policyWeights is 1, that of tokenIds 4/,
  )
  const lengths = two.map((sequence, b) => ({ ...sequence, weight: [2, 1][b]! }))
  // LUSPO: a weight of the length undoes sequence-mean's 1/length.
  assert.equal(tokenWeights(lengths, 'sequence-mean', 4), [0.5, 0.5])
  assert.equal(tokenWeights(lengths, 'token-mean', 4), [2 / 3, 1 / 3])
  assert.equal(tokenWeights(lengths, 'constant', 4), [0.25, 0.125])
  const infinite = [{ ...two[0]!, weight: Infinity }]
  assert.throws(() => tokenWeights(infinite, 'token-mean', 4), /sequence 0: weight is Infinity/)
})

test('what is not given is left out, not filled in', () => {
  const batch = packBatch([{ tokenIds: [1, 2], completionMask: [0, 1], advantage: 1 }], [1])
  assert.not('refWeights' in batch)
  assert.not('oldLogprobs' in batch)
  assert.not('policyWeights' in batch)
})

test('prompt and completion become one sequence', () => {
  const sequence = toSequence([5, 6], Int32Array.of(7, 2), {
    advantage: 0.5,
    refWeight: 1,
    oldLogprobs: [-1, -2],
  })
  assert.equal(sequence, two[0])
  assert.equal(toSequence([5], [2], { advantage: 1 }), {
    tokenIds: [5, 2],
    completionMask: [0, 1],
    advantage: 1,
  })
})

test('several turns: only sampled tokens become rows', () => {
  const turns: TrainSequence = {
    tokenIds: [1, 2, 3, 4, 5, 6],
    completionMask: [0, 1, 0, 0, 1, 1],
    advantage: 1,
  }
  const { rowPositions, tokenIds } = packBatch(
    [{ tokenIds: [9], completionMask: [0], advantage: 0 }, turns],
    [0, 1],
  )
  // The turns begin at position 1.
  assert.equal([...rowPositions], [1, 4, 5])
  assert.equal([...tokenIds], [2, 5, 6])
})

test('token weights by hand: 3 and 1 trained tokens, maxLength 4', () => {
  const sequences = [{ completionMask: [0, 1, 1, 1] }, { completionMask: [0, 0, 1] }]
  assert.equal(tokenWeights(sequences, 'sequence-mean', 4), [1 / 6, 1 / 2])
  assert.equal(tokenWeights(sequences, 'token-mean', 4), [1 / 4, 1 / 4])
  assert.equal(tokenWeights(sequences, 'constant', 4), [1 / 8, 1 / 8])
})

test('with the weights, a sum over rows is the mean that the aggregation says', () => {
  const sequences = [{ completionMask: [0, 1, 1, 1] }, { completionMask: [0, 1] }, { completionMask: [0, 0] }]
  const values = [[1, 2, 3], [10], []]
  const sum = (aggregation: (typeof aggregations)[number]) => {
    const weights = tokenWeights(sequences, aggregation, 5)
    return values.reduce(
      (total, row, b) => total + row.reduce((all, value) => all + value * weights[b]!, 0),
      0,
    )
  }
  const isNear = (actual: number, expected: number) =>
    assert.ok(Math.abs(actual - expected) < 1e-15, `${actual}`)
  isNear(sum('sequence-mean'), (2 + 10 + 0) / 3)
  isNear(sum('token-mean'), 16 / 4)
  isNear(sum('constant'), 16 / (3 * 5))
})

test('any split holds every row once, with its own values, within the budget', () => {
  const random = createRandom(2)
  const sequences = Array.from({ length: 40 }, (_, b): TrainSequence => {
    const promptIds = Array.from({ length: 1 + random.below(5) }, () => random.below(20))
    // Marks each row: its token and advantage say which one it is.
    const completionIds = Array.from({ length: random.below(9) }, (_, t) => 100 * (b + 1) + t)
    return toSequence(promptIds, completionIds, { advantage: b })
  })
  const weights = tokenWeights(sequences, 'sequence-mean', 8)
  const rowsOf = (batches: MicroBatch[]) =>
    batches
      .flatMap(batch =>
        Array.from(batch.tokenIds, (id, i) => {
          const { sequences, rowPositions, advantages, tokenWeights } = batch
          return [id, advantages[i], tokenWeights[i], sequences.tokenIds[rowPositions[i]! + 1]].join()
        }),
      )
      .sort()
  const whole = rowsOf([packBatch(sequences, weights)])
  for (const budget of [1, 13, 50, 1e6]) {
    const batches = splitBatch(sequences, weights, budget)
    assert.equal(rowsOf(batches), whole, `budget ${budget}`)
    for (const { sequences } of batches) {
      const all = Array.from(sequences.offsets.slice(1), (end, b) =>
        Array.from(sequences.tokenIds.slice(sequences.offsets[b]!, end)),
      )
      // Neighbours with the same prompt (ids below 20 here begin a sequence) count it once.
      const promptOf = (ids: number[]) => ids.filter(id => id < 20).join()
      const counted = all.map((ids, b) => {
        const isShared = b > 0 && promptOf(ids) === promptOf(all[b - 1]!)
        return ids.filter(id => id >= 20 || !isShared).length
      })
      assert.ok(all.length === 1 || counted.reduce((sum, length) => sum + length, 0) <= budget)
    }
    if (budget === 1e6) assert.is(batches.length, 1)
  }
})

test('a budget counts tokens, not padding', () => {
  const sequence = (length: number, b: number): TrainSequence => ({
    tokenIds: Array.from({ length }, () => b),
    completionMask: Array.from({ length }, (_, t) => (t > 0 ? 1 : 0)),
    advantage: 1,
  })
  const batches = splitBatch([2, 10, 3, 4, 2].map(sequence), [1, 1, 1, 1, 1], 11)
  const lengths = batches.map(({ sequences: { offsets } }) =>
    Array.from(offsets.slice(1), (end, b) => end - offsets[b]!),
  )
  assert.equal(lengths, [[2], [10], [3, 4, 2]])
})

test('a prompt that neighbours share counts once', () => {
  const prompt = [1, 2, 3, 4]
  const group = [5, 6, 7, 8].map(id => toSequence(prompt, [id, 9], { advantage: 1 }))
  const other = toSequence([1, 2, 3, 5], [6, 9], { advantage: 1 })
  const sizes = (sequences: TrainSequence[], budget: number) =>
    splitBatch(
      sequences,
      sequences.map(() => 1),
      budget,
    ).map(({ sequences: { offsets } }) => offsets.length - 1)
  assert.equal(sizes(group, 12), [4]) // 4 + 4 · 2
  assert.equal(sizes(group, 11), [3, 1])
  assert.equal(sizes([...group, other], 12), [4, 1])
  assert.equal(sizes([...group, other], 18), [5])
})

test('mini-batches: all items, in order, sizes equal or one apart', () => {
  const items = [0, 1, 2, 3, 4, 5, 6]
  for (let parts = 1; parts <= 7; parts++) {
    const split = splitEvenly(items, parts)
    assert.is(split.length, parts)
    assert.equal(split.flat(), items)
    const sizes = split.map(part => part.length)
    assert.ok(Math.max(...sizes) - Math.min(...sizes) <= 1)
  }
})

test('arrays that do not fit each other', () => {
  const pack = (sequence: Partial<TrainSequence>) => () =>
    packBatch([{ tokenIds: [1, 2], completionMask: [0, 1], advantage: 1, ...sequence }], [1])
  assert.throws(
    pack({ completionMask: [0] }),
    /sequence 0: the length of completionMask is 1, that of tokenIds 2/,
  )
  assert.throws(pack({ oldLogprobs: [0] }), /sequence 0: the length of oldLogprobs is 1, that of tokenIds 2/)
  assert.throws(pack({ completionMask: [1, 1] }), /nothing predicts the first token/)
  const { oldLogprobs: _, ...without } = two[1]!
  assert.throws(() => packBatch([two[0]!, without], [1, 1]), /for all sequences or for none/)
})

test('an unknown aggregation, a maxLength that is none', () => {
  const weights = (aggregation: string, maxLength: number) => () =>
    tokenWeights(two, aggregation as never, maxLength)
  assert.throws(weights('sum', 4), /aggregation is sum, expected one of sequence-mean, token-mean, constant/)
  for (const maxLength of [0, -1, Number.NaN, Infinity])
    assert.throws(weights('constant', maxLength), /maxLength is .*, expected a number >= 1/)
  assert.equal(tokenWeights([], 'token-mean', 4), [])
  for (const aggregation of ['sequence-mean', 'token-mean', 'constant'] as const)
    assert.equal(tokenWeights([{ completionMask: [0, 0] }], aggregation, 4), [0])
})

test('weights, masks, ids and budgets that are none', () => {
  for (const weights of [[], [1], [1, 1, 1]]) {
    assert.throws(() => packBatch(two, weights), /the length of weights is \d, that of sequences 2/)
    assert.throws(() => splitBatch(two, weights, 10), /the length of weights is \d, that of sequences 2/)
  }
  for (const weight of [Number.NaN, Infinity, undefined as never])
    assert.throws(
      () => packBatch(two, [1, weight]),
      /sequence 1: its token weight is .*, expected a finite number/,
    )
  for (const mask of [2, 0.5, Number.NaN, true as never]) {
    const wrong = [{ tokenIds: [1, 2], completionMask: [0, mask], advantage: 1 }]
    assert.throws(() => packBatch(wrong, [1]), /sequence 0: completionMask\[1\] is .*, expected 0 or 1/)
    assert.throws(() => splitBatch(wrong, [1], 10), /sequence 0: completionMask\[1\] is .*, expected 0 or 1/)
  }
  for (const id of [2 ** 31, -1, 1.5, Number.NaN]) {
    assert.throws(
      () => packTokens([[1], [2, id]]),
      /sequence 1: tokenIds\[1\] is .*, expected a whole number in/,
    )
    const wrong = [{ tokenIds: [1, id], completionMask: [0, 1], advantage: 1 }]
    assert.throws(() => packBatch(wrong, [1]), /sequence 0: tokenIds\[1\] is .*, expected a whole number in/)
  }
  for (const budget of [0, -5, Number.NaN])
    assert.throws(() => splitBatch(two, [1, 1], budget), /maxTokens is .*, expected a number >= 1/)
  for (const parts of [0, -1, 1.5, Number.NaN])
    assert.throws(() => splitEvenly([1, 2], parts), /parts is .*, expected a whole number >= 1/)
  assert.equal(splitBatch([], [], 10), [])
  assert.is(packBatch([], []).tokenIds.length, 0)
  assert.equal(splitEvenly([], 0), [])
  assert.equal(splitEvenly([], 2), [[], []])
})

test('packTokens, also of nothing', () => {
  assert.equal(packTokens([[5, 6], [], [7]]), {
    tokenIds: Int32Array.of(5, 6, 7),
    offsets: Int32Array.of(0, 2, 2, 3),
  })
  assert.equal(packTokens([]), { tokenIds: new Int32Array(), offsets: Int32Array.of(0) })
})

test('unpackCompletions cuts completions by their offsets, an empty one included, as copies', () => {
  const packed = {
    tokens: { tokenIds: Int32Array.of(5, 6, 2), offsets: Int32Array.of(0, 1, 1, 3) },
    logprobs: Float32Array.of(-1, -2, -3),
    finishReasons: ['length', 'stop', 'stop'] as const,
  }
  const completions = unpackCompletions(packed)
  assert.equal(completions, [
    { tokenIds: Int32Array.of(5), logprobs: Float32Array.of(-1), finishReason: 'length' },
    { tokenIds: new Int32Array(0), logprobs: new Float32Array(0), finishReason: 'stop' },
    { tokenIds: Int32Array.of(6, 2), logprobs: Float32Array.of(-2, -3), finishReason: 'stop' },
  ])
  packed.tokens.tokenIds[0] = 9
  packed.logprobs[0] = 9
  assert.is(completions[0]!.tokenIds[0], 5)
  assert.is(completions[0]!.logprobs[0], -1)
})

test.run()
