import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { type Correction, importanceWeights, mismatch, offPolicyMask } from '../../lib/loss/correction.js'
import { adaptEntropyCoef, topEntropyWeights } from '../../lib/loss/entropy.js'

/** Ratios trainer / sampler 2, ½ | (no rows) | 1, 4, 1. */
const rows = {
  logprobs: Float32Array.from([0.5, 0.1, 0.3, 0.8, 0.2], Math.log),
  samplerLogprobs: Float32Array.from([0.25, 0.2, 0.3, 0.2, 0.2], Math.log),
  sequenceOffsets: Int32Array.of(0, 2, 2, 5),
}
const token: Correction = { level: 'token', outside: 'truncate', low: 0.75, high: 3 }

// The logarithms are rounded to float32: a ratio is off by their size times 2⁻²⁴, twice.
const near = (actual: ArrayLike<number>, expected: number[]) => {
  assert.is(actual.length, expected.length)
  for (const [i, value] of expected.entries()) {
    assert.ok(Math.abs(actual[i]! - value) <= 8 * 2 ** -24 * value, `${i}: ${actual[i]}, expected ${value}`)
  }
}

test('token level: truncated, or masked', () => {
  const truncated = importanceWeights(rows, token)
  near(truncated.weights, [2, 0.75, 1, 3, 1])
  near([truncated.mean, truncated.min, truncated.max], [8.5 / 5, 0.5, 4])
  assert.is(truncated.truncatedFraction, 2 / 5)
  near(importanceWeights(rows, { ...token, outside: 'mask' }).weights, [2, 0, 1, 0, 1])
})

test('both bounds may be 1: every ratio counts as 1', () => {
  near(importanceWeights(rows, { ...token, low: 1, high: 1 }).weights, [1, 1, 1, 1, 1])
})

test('sequence level: the product of the ratios, for every row', () => {
  const result = importanceWeights(rows, { ...token, level: 'sequence' })
  near(result.weights, [1, 1, 3, 3, 3])
  near([result.mean, result.min, result.max], [2.5, 1, 4])
  assert.is(result.truncatedFraction, 1 / 2)
  near(importanceWeights(rows, { ...token, level: 'sequence', outside: 'mask' }).weights, [1, 1, 0, 0, 0])
})

test('a ratio too large for a number is bounded like any other', () => {
  const far = { logprobs: Float32Array.of(0), samplerLogprobs: Float32Array.of(-1e5) }
  const { weights, max } = importanceWeights({ ...far, sequenceOffsets: Int32Array.of(0, 1) }, token)
  assert.equal(weights, Float32Array.of(3))
  assert.ok(Number.isFinite(max))
})

test('masked are sequences with a negative advantage that the policy has left', () => {
  const left = { ...rows, logprobs: rows.samplerLogprobs, samplerLogprobs: rows.logprobs }
  // Mean log-ratio sampler / trainer: 0 and log 4 / 3 = 0.46.
  const mask = (sign: number, maxDivergence: number) =>
    offPolicyMask({ ...left, advantages: new Float32Array(5).fill(sign) }, maxDivergence)
  assert.equal(mask(-1, 0.4), { weights: Float32Array.of(1, 1, 0, 0, 0), maskedFraction: 1 / 2 })
  assert.equal(mask(-1, 0.5).weights, new Float32Array(5).fill(1))
  assert.equal(mask(1, 0.4), { weights: new Float32Array(5).fill(1), maskedFraction: 0 })
})

test('no rows: every ratio is 1', () => {
  const none = new Float32Array(0)
  for (const sequenceOffsets of [Int32Array.of(0), Int32Array.of(0, 0, 0)]) {
    const empty = { logprobs: none, samplerLogprobs: none, sequenceOffsets }
    for (const level of ['token', 'sequence'] as const) {
      const result = importanceWeights(empty, { ...token, level })
      assert.equal(result, { weights: none, mean: 1, min: 1, max: 1, truncatedFraction: 0 })
    }
    assert.equal(offPolicyMask({ ...empty, advantages: none }, 1), { weights: none, maskedFraction: 0 })
  }
})

test('advantages that are no numbers, or differ within a sequence', () => {
  const mask = (advantages: number[]) => () =>
    offPolicyMask({ ...rows, advantages: Float32Array.from(advantages) }, 1)
  assert.throws(mask([1, 1, 1, Number.NaN, 1]), /advantages\[3\] is NaN, expected a finite number/)
  assert.throws(
    mask([1, 1, -1, -1, 1]),
    /advantages\[4\] is 1, expected -1, as in the other rows of its sequence/,
  )
})

test('what does not fit is named', () => {
  const bad = (changes: object, correction: object, message: RegExp) =>
    assert.throws(() => importanceWeights({ ...rows, ...changes }, { ...token, ...correction }), message)
  bad({}, { level: 'batch' }, /level is batch, expected one of token, sequence/)
  bad({}, { outside: 'drop' }, /outside is drop, expected one of truncate, mask/)
  bad({}, { low: 1.5 }, /low is 1.5, expected a number in \[0, 1\]/)
  bad({}, { high: 0.5 }, /high is 0.5, expected a number ≥ 1/)
  bad({ samplerLogprobs: new Float32Array(4) }, {}, /samplerLogprobs is of length 4, expected 5/)
  bad(
    { sequenceOffsets: Int32Array.of(0, 4) },
    {},
    /sequenceOffsets is \[0, 4\], expected ascending from 0 to 5/,
  )
  bad({ sequenceOffsets: Int32Array.of(0, 6, 5) }, {}, /sequenceOffsets is \[0, 6, 5\]/)
  bad({ logprobs: new Float32Array(5).fill(-Infinity) }, {}, /logprobs\[0\] is -Infinity/)
  bad({ samplerLogprobs: new Float32Array(5).fill(Number.NaN) }, {}, /samplerLogprobs\[0\] is NaN/)
  const advantages = new Float32Array(5)
  assert.throws(() => offPolicyMask({ ...rows, advantages }, -1), /maxDivergence is -1/)
  assert.throws(
    () => offPolicyMask({ ...rows, advantages: new Float32Array(4) }, 1),
    /advantages is of length 4/,
  )
})

test('the entropy coefficient moves towards the target, and acts at or below it', () => {
  const control = { target: 1, step: 0.25, max: 0.6 }
  assert.equal(adaptEntropyCoef(0, 0.5, control), { entropyCoef: 0, next: 0.25 })
  assert.equal(adaptEntropyCoef(0.5, 0.5, control), { entropyCoef: 0.5, next: 0.6 })
  assert.equal(adaptEntropyCoef(0.5, 1, control), { entropyCoef: 0.5, next: 0.5 })
  assert.equal(adaptEntropyCoef(0.5, 1.5, control), { entropyCoef: 0, next: 0.25 })
  assert.equal(adaptEntropyCoef(0.1, 1.5, control), { entropyCoef: 0, next: 0 })
})

test('the entropy coefficient of what is no number', () => {
  const control = { target: 1, step: 0.25, max: 0.6 }
  assert.throws(
    () => adaptEntropyCoef(Number.NaN, 1, control),
    /coefficient is NaN, expected a finite number >= 0/,
  )
  assert.throws(() => adaptEntropyCoef(-0.1, 1, control), /coefficient is -0.1/)
  assert.throws(() => adaptEntropyCoef(0, Number.NaN, control), /entropy is NaN, expected a finite number/)
  assert.throws(() => adaptEntropyCoef(0, 1, { ...control, target: Infinity }), /target is Infinity/)
  for (const step of [0, -1, Number.NaN])
    assert.throws(
      () => adaptEntropyCoef(0, 1, { ...control, step }),
      /step is .*, expected a finite number > 0/,
    )
  assert.throws(() => adaptEntropyCoef(0, 1, { ...control, max: Number.NaN }), /max is NaN/)
})

test('the rows of the highest entropy, ties in', () => {
  for (const bad of [Number.NaN, Infinity])
    assert.throws(
      () => topEntropyWeights(Float32Array.of(1, bad), 0.5),
      /entropies\[1\] is .*, expected a finite/,
    )
  const entropies = Float32Array.of(0.1, 2, 0.3, 1)
  assert.equal(topEntropyWeights(entropies, 0.5), Float32Array.of(0, 1, 0, 1))
  assert.equal(topEntropyWeights(entropies, 0.51), Float32Array.of(0, 1, 1, 1))
  assert.equal(topEntropyWeights(entropies, 0.01), Float32Array.of(0, 1, 0, 0))
  assert.equal(topEntropyWeights(entropies, 1), Float32Array.of(1, 1, 1, 1))
  assert.equal(topEntropyWeights(Float32Array.of(1, 1, 0), 0.3), Float32Array.of(1, 1, 0))
  assert.equal(topEntropyWeights(new Float32Array(0), 0.5), new Float32Array(0))
  for (const fraction of [0, 1.1, Number.NaN]) {
    assert.throws(
      () => topEntropyWeights(entropies, fraction),
      /fraction is .*, expected a number in \(0, 1\]/,
    )
  }
})

test('mismatch: mean, 99th percentile and share outside 10 %, both signs', () => {
  // Exact in float32: 196 rows of ±1/16 (within 10 %), 4 of ±1/2.
  const logprobs = Float32Array.from({ length: 200 }, (_, i) => -1 - i / 64)
  const difference = (i: number) => (i % 50 === 0 ? 1 / 2 : 1 / 16) * (i % 4 < 2 ? 1 : -1)
  const samplerLogprobs = logprobs.map((logprob, i) => logprob + difference(i))
  const rows = { logprobs, samplerLogprobs, sequenceOffsets: Int32Array.of(0, 120, 200) }
  assert.equal(mismatch(rows), {
    mean: (196 / 16 + 4 / 2) / 200,
    p99: 1 / 2,
    outsideFraction: 0.02,
  })
  // ln 1.1 = 0.0953 and ln 0.9 = −0.1054 are the bounds.
  const at = (logRatio: number) =>
    mismatch({
      logprobs: Float32Array.of(logRatio),
      samplerLogprobs: Float32Array.of(0),
      sequenceOffsets: Int32Array.of(0, 1),
    }).outsideFraction
  assert.equal([0.095, 0.096, -0.105, -0.106].map(at), [0, 1, 0, 1])
  const none = new Float32Array(0)
  const empty = { logprobs: none, samplerLogprobs: none, sequenceOffsets: Int32Array.of(0) }
  assert.equal(mismatch(empty), { mean: 0, p99: 0, outsideFraction: 0 })
})

test.run()
