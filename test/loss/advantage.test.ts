import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { moments } from '../../lib/base/stats.js'
import { parseConfig } from '../../lib/config/load.js'
import {
  groupAdvantages,
  multiObjectiveAdvantages,
  perRow,
  referenceWeights,
  zeroAdvantageFraction,
} from '../../lib/loss/advantage.js'
import { rapoPhi } from '../../lib/loss/objective.js'
import { errorOf } from '../helpers/kernels-check.js'

const isNear = (actual: number, expected: number, tolerance: number) =>
  assert.ok(Math.abs(actual - expected) <= tolerance, `${actual}, expected ${expected} ± ${tolerance}`)

test('two rewards by hand: mean .5, standard deviation √½', () => {
  const [a, b] = groupAdvantages([1, 0], 2)
  isNear(a!, 0.5 / (Math.SQRT1_2 + 1e-6), 1e-15)
  assert.is(b, -a!)
})

test('typed arrays give what lists give', () => {
  const rewards = [1, 0, 0.5, 0.25]
  const typed = Float64Array.from(rewards)
  assert.equal(groupAdvantages(typed, 2), groupAdvantages(rewards, 2))
  assert.equal(referenceWeights(typed), referenceWeights(rewards))
  assert.is(zeroAdvantageFraction(Float32Array.of(1, 1, 0, 1), 2), 0.5)
  const parts = (list: ArrayLike<number>) => [
    { rewards: list, weight: 1 },
    { rewards: list, weight: 2 },
  ]
  assert.equal(multiObjectiveAdvantages(parts(typed), 2), multiObjectiveAdvantages(parts(rewards), 2))
  assert.throws(() => groupAdvantages(Float32Array.of(1, Number.NaN), 2), /rewards\[1\] is NaN/)
})

test('each group by itself: 1 0 0 0 and 2 4', () => {
  // Mean 1/4, variance (9/16 + 3/16) / 3 = 1/4: (3/4, −1/4, …) / (1/2 + 1e-6).
  const four = groupAdvantages([1, 0, 0, 0], 4)
  isNear(four[0]!, 0.75 / 0.500001, 1e-15)
  for (const value of four.slice(1)) isNear(value, -0.25 / 0.500001, 1e-15)
  const pairs = groupAdvantages([1, 0, 2, 4], 2)
  isNear(pairs[2]!, -1 / (Math.SQRT2 + 1e-6), 1e-15)
  isNear(pairs[0]!, 0.5 / (Math.SQRT1_2 + 1e-6), 1e-15)
})

test('without standardisation only the mean goes', () => {
  assert.equal(
    groupAdvantages([1, 0, 0, 0, 3, 3, 3, 7], 4, { scale: 'none' }),
    [0.75, -0.25, -0.25, -0.25, -1, -1, -1, 3],
  )
})

test('equal rewards give exactly 0, also where their mean is not exact', () => {
  for (const reward of [0, 1, 0.1, -1e300, 1 / 3]) {
    for (const size of [1, 2, 3, 10]) {
      assert.equal(groupAdvantages(Array(size).fill(reward), size), Array(size).fill(0))
    }
  }
  // The mean of ten times .1 is not .1 in doubles: the difference must not be blown up.
  assert.is.not(
    Array(10)
      .fill(0.1)
      .reduce((a, b) => a + b) / 10,
    0.1,
  )
})

test('rewards that are not whole groups', () => {
  for (const [rewards, size] of [
    [[1, 0, 1], 2],
    [[1], 0],
    [[1, 0, 1, 0, 1], 2.5],
    [[1, Number.NaN], 2],
  ] as const) {
    assert.throws(
      () => groupAdvantages(rewards, size),
      (error: unknown) => error instanceof RapoError,
    )
  }
})

test('rewards too large to average are refused, not turned into 0 or NaN', () => {
  assert.throws(
    () => groupAdvantages([0, 0, 1e200, 0], 2),
    /rewards\[2\] and those of its group are too large/,
  )
  const none = { scale: 'none' } as const
  assert.throws(() => groupAdvantages([1.7e308, 1.7e308, 0], 3, none), /rewards\[0\] .* too large/)
  assert.equal(groupAdvantages([], 4), [])
})

test('share of groups that teach nothing', () => {
  assert.is(zeroAdvantageFraction([], 4), 0)
  for (const size of [0, -1, 1.5, Number.NaN, 3])
    assert.throws(
      () => zeroAdvantageFraction([1, 0], size),
      /the length of rewards is 2, no multiple of groupSize/,
    )
  assert.is(zeroAdvantageFraction([1, 1, 0, 1, 0, 0, 1, 0], 2), 0.5)
  assert.is(zeroAdvantageFraction([1, 0], 2), 0)
})

test('φ is linear between rMin and rMax and constant outside', () => {
  const phi = { phiMin: 0.6, phiMax: 1, rMin: 0, rMax: 1 }
  const weights = referenceWeights([-1, 0, 0.5, 1, 2], phi)
  for (const [i, expected] of [0.6, 0.6, 0.8, 1, 1].entries()) isNear(weights[i]!, expected, 1e-15)
  assert.equal(referenceWeights([-3, -1, 1], { phiMin: 0, phiMax: 0.5, rMin: -3, rMax: 1 }), [0, 0.25, 0.5])
})

test('a φ of your own is checked for its range', () => {
  assert.equal(
    referenceWeights([0, 4], reward => Math.sqrt(reward) / 2),
    [0, 1],
  )
  for (const bad of [1.01, -0.01, Number.NaN, Infinity]) {
    assert.throws(() => referenceWeights([3], () => bad), /φ\(3\) is .*, expected a number in \[0, 1\]/)
  }
})

test('φ of what is no number, no shape or no range', () => {
  const linear = { phiMin: 0, phiMax: 1, rMin: 0, rMax: 1 }
  const step = { shape: 'step', phiMin: 0, phiMax: 1, rMax: 1 } as const
  assert.equal(referenceWeights([], linear), [])
  assert.throws(
    () => referenceWeights([1], { ...linear, shape: 'cubic' as never }),
    /shape is cubic, expected one of linear, step/,
  )
  for (const phi of [linear, step, (x: number) => (x > 0 ? 1 : 0)]) {
    for (const reward of [Number.NaN, Infinity, -Infinity])
      assert.throws(() => referenceWeights([0, reward], phi), new RegExp(`rewards\\[1\\] is ${reward}`))
  }
  for (const phi of [linear, step]) {
    // Also where no reward is there to show it.
    assert.throws(
      () => referenceWeights([], { ...phi, phiMin: -0.1 }),
      /phiMin is -0.1, expected a number in \[0, 1\]/,
    )
    assert.throws(
      () => referenceWeights([], { ...phi, phiMax: 1.1 }),
      /phiMax is 1.1, expected a number in \[0, 1\]/,
    )
    assert.throws(() => referenceWeights([], { ...phi, phiMin: Number.NaN }), /phiMin is NaN/)
    assert.throws(
      () => referenceWeights([], { ...phi, rMax: Number.NaN }),
      /rMax is NaN, expected a finite number/,
    )
  }
  assert.throws(
    () => referenceWeights([], { ...linear, rMin: -Infinity }),
    /rMin is -Infinity, expected a finite/,
  )
})

test('φ as a step, and ranges that are none', () => {
  const step = { shape: 'step', phiMin: 0.2, phiMax: 0.9, rMax: 1 } as const
  assert.equal(referenceWeights([-1, 0.999, 1, 5], step), [0.2, 0.2, 0.9, 0.9])
  assert.throws(
    () => referenceWeights([1], { ...step, phiMin: 1 }),
    /phiMin is 1, expected at most phiMax = 0.9/,
  )
  const linear = { phiMin: 0, phiMax: 1, rMin: 1, rMax: 1 }
  assert.throws(() => referenceWeights([1], linear), /rMin is 1, expected less than rMax = 1/)
})

test('the population’s standard deviation divides by n', () => {
  // 1 0 0 0: mean 1/4, variance (9/16 + 3/16) / 4 = 3/16.
  const advantages = groupAdvantages([1, 0, 0, 0], 4, { scale: 'population-std' })
  isNear(advantages[0]!, 0.75 / (Math.sqrt(3) / 4 + 1e-6), 1e-15)
})

test('leave-one-out: the baseline is the mean of the others', () => {
  const options = { baseline: 'leave-one-out', scale: 'none' } as const
  const rewards = [1, 0, 0, 5, 2, 2, 2, 2]
  const others = (i: number) => (rewards.slice(0, 4).reduce((a, b) => a + b) - rewards[i]!) / 3
  const advantages = groupAdvantages(rewards, 4, options)
  for (let i = 0; i < 4; ++i) isNear(advantages[i]!, rewards[i]! - others(i), 1e-15)
  assert.equal(advantages.slice(4), [0, 0, 0, 0])
  assert.throws(() => groupAdvantages([1], 1, options), /groupSize is 1, but leave-one-out needs/)
})

test('unknown choices', () => {
  assert.throws(
    () => groupAdvantages([1, 0], 2, { scale: 'std' as never }),
    /scale is std, expected one of sample-std/,
  )
  assert.throws(
    () => groupAdvantages([1, 0], 2, { baseline: 'none' as never }),
    /baseline is none, expected one of/,
  )
})

test('moments', () => {
  assert.equal(moments([1, 3]), { mean: 2, std: 1 })
  assert.equal(moments([1, 3], 1), { mean: 2, std: Math.SQRT2 })
})

test("reference weights are RAPO's unless told otherwise, the same as the configuration's preset", () => {
  assert.equal(referenceWeights([0, 1]), [0.7, 1])
  isNear(referenceWeights([0.5])[0]!, 0.85, 1e-15)
  const { phiMin, phiMax, rMin, rMax, penalty } = parseConfig({
    model: { dir: 'm' },
    data: { train: 't.jsonl' },
    task: { verifier: 'exact' },
    sampling: { promptsPerStep: 1, groupSize: 2, maxNewTokens: 1 },
    objective: { preset: 'rapo' },
    optimizer: { learningRate: 1e-6 },
    run: { output: 'o', steps: 1 },
  }).objective
  assert.equal({ phiMin, phiMax, rMin, rMax }, { ...rapoPhi })
  assert.is(penalty, 'forward')
})

test('perRow repeats the value of each completion over its rows', () => {
  assert.equal(perRow([0.5, -0.5, 2], [0, 2, 2, 3]), Float32Array.of(0.5, 0.5, 2))
  assert.equal(perRow(Float32Array.of(1), Int32Array.of(0, 2)), Float32Array.of(1, 1))
  assert.equal(perRow([], [0]), new Float32Array(0))
})

test('perRow: offsets that do not fit throw with field, value and range', () => {
  for (const [values, offsets, message] of [
    [[1], [0], 'sequenceOffsets has 1 elements, expected 2 for 1 values'],
    [[1], [1, 2], 'sequenceOffsets[0] is 1, expected 0'],
    [[1, 2], [0, 2, 1], 'sequenceOffsets[2] is 1, expected a whole number >= 2'],
    [[1], [0, 1.5], 'sequenceOffsets[1] is 1.5, expected a whole number >= 0'],
    [[1], [0, Number.NaN], 'sequenceOffsets[1] is NaN'],
  ] as const) {
    const error = errorOf(() => perRow(values, offsets))
    assert.is(error.code, 'ERR_RAPO_INVALID_ARGUMENT')
    assert.ok(error.message.includes(message), error.message)
  }
})

test('several rewards: the advantage of their sum, or the sum of their advantages', () => {
  const parts = [
    { rewards: [1, 0, 0, 0, 1, 1, 0, 0], weight: 1 },
    { rewards: [0, 0, 1, 1, 0.5, 0.5, 0.5, 0.5], weight: 0.5 },
    { rewards: [3, 1, 4, 1, 5, 9, 2, 6], weight: 0 },
  ]
  const sums = [1, 0, 0.5, 0.5, 1.25, 1.25, 0.25, 0.25]
  assert.equal(multiObjectiveAdvantages(parts, 4), groupAdvantages(sums, 4))
  assert.equal(
    multiObjectiveAdvantages(parts, 2, { scale: 'none', baseline: 'leave-one-out' }),
    groupAdvantages(sums, 2, { scale: 'none', baseline: 'leave-one-out' }),
  )
  // By hand: A of each within its group of 4, weighted, then over the standard deviation of all 8.
  const normalized = (group: number[]) => {
    const mean = group.reduce((sum, x) => sum + x) / 4
    const std = Math.sqrt(group.reduce((sum, x) => sum + (x - mean) ** 2, 0) / 3)
    return group.map(x => (x - mean) / (std + 1e-6))
  }
  const own = [
    ...normalized([1, 0, 0, 0]).map((x, i) => x + 0.5 * normalized([0, 0, 1, 1])[i]!),
    ...normalized([1, 1, 0, 0]),
  ]
  const std = Math.sqrt(own.reduce((sum, x) => sum + x * x, 0) / 7)
  const got = multiObjectiveAdvantages(parts, 4, { aggregation: 'normalize-then-sum' })
  for (const [i, x] of own.entries()) assert.ok(Math.abs(got[i]! - x / (std + 1e-6)) < 1e-12, `${i}`)
  // Equal sums of unlike rewards are told apart by the second alone.
  const swapped = [
    { rewards: [1, 0, 1, 0], weight: 1 },
    { rewards: [0, 1, 0.2, 0.2], weight: 1 },
  ]
  assert.equal(multiObjectiveAdvantages(swapped, 2).slice(0, 2), [0, 0])
  const apart = [swapped[0]!, { rewards: [0, 1, 0, 1], weight: 3 }]
  const aggregation = 'normalize-then-sum'
  assert.ok(multiObjectiveAdvantages(apart, 2, { aggregation })[0]! < 0)
  // Without a difference anywhere: exactly 0.
  assert.equal(multiObjectiveAdvantages([{ rewards: [1, 1], weight: 1 }], 2, { aggregation }), [0, 0])
  assert.throws(
    () => multiObjectiveAdvantages([{ rewards: [1, 0], weight: Number.NaN }], 2),
    /the weight of part 0 is NaN/,
  )
  assert.throws(() => multiObjectiveAdvantages([], 2), /one part at least/)
  assert.throws(
    () => multiObjectiveAdvantages([swapped[0]!, { rewards: [1], weight: 1 }], 2),
    /the length of rewards is 1 in a part, and 4 in the first/,
  )
})

test.run()
