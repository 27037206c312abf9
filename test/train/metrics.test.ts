import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import type { RapoError } from '../../lib/base/errors.js'
import { addMetrics, emptyMetrics, meanMetrics, type ObjectiveMetrics } from '../../lib/loss/objective.js'
import type { ScoredRollout } from '../../lib/rollout/rollout.js'
import {
  type Filtered,
  type Remeasured,
  type RolloutMetrics,
  summarizeStep,
} from '../../lib/train/metrics.js'

const rollout = (reward: number, length: number, finishReason: 'stop' | 'length'): ScoredRollout => ({
  problem: { id: 'p', prompt: 'p', answer: 'a' },
  promptIds: [1],
  completionIds: new Int32Array(length),
  logprobs: new Float32Array(length),
  finishReason,
  completion: '',
  reward,
  reason: '',
})

const sums: ObjectiveMetrics = {
  tokens: 8,
  loss: -0.5,
  klSum: 0.8,
  entropySum: 16,
  ratioSum: 8.4,
  approxKlSum: 0.04,
  clippedLow: 2,
  clippedHigh: 1,
  klClamped: 3,
  ratioMin: 0.5,
  ratioMax: 2,
}

test('the metrics of two parts are added; the bounds of the ratio are those of both', () => {
  const other: ObjectiveMetrics = {
    tokens: 2,
    loss: 0.25,
    klSum: 0.5,
    entropySum: 4,
    ratioSum: 2,
    approxKlSum: 0.5,
    clippedLow: 1,
    clippedHigh: 4,
    klClamped: 5,
    ratioMin: 0.25,
    ratioMax: 1.5,
  }
  const expected: ObjectiveMetrics = {
    tokens: 10,
    loss: -0.25,
    klSum: 0.8 + 0.5,
    entropySum: 20,
    ratioSum: 8.4 + 2,
    approxKlSum: 0.04 + 0.5,
    clippedLow: 3,
    clippedHigh: 5,
    klClamped: 8,
    ratioMin: 0.25,
    ratioMax: 2,
  }
  assert.equal(addMetrics(sums, other), expected)
  assert.equal(addMetrics(other, sums), expected)
  assert.equal(addMetrics(emptyMetrics, sums), sums)
})

test("a step's line by hand: two groups of two, two optimizer steps", () => {
  const rollouts = [
    rollout(1, 1, 'stop'),
    rollout(0, 2, 'stop'),
    rollout(1, 4, 'length'),
    rollout(1, 1, 'stop'),
  ]
  const results = [
    { gradNorm: 1, skipped: false },
    { gradNorm: 3, skipped: true },
  ]
  assert.equal(summarizeStep(rollouts, 2, sums, results), {
    rewardMean: 0.75,
    rewardStd: Math.sqrt(0.1875),
    zeroAdvantageFraction: 0.5,
    loss: -0.25,
    kl: 0.1,
    entropy: 2,
    clipFractionLow: 0.25,
    clipFractionHigh: 0.125,
    ratioMean: 1.05,
    approxKl: 0.005,
    gradNorm: 2,
    completionLengthMean: 2,
    completionLengthMin: 1,
    completionLengthMax: 4,
    truncatedFraction: 0.25,
    tokens: 8,
    skippedSteps: 1,
  })
})

test('of an episode the tokens that the model wrote count, and its turns', () => {
  const episode = {
    ...rollout(1, 5, 'stop'),
    completionMask: [1, 1, 0, 0, 1],
    turns: [1, 2].map(() => ({ completion: '' })),
  }
  const other = { ...rollout(0, 3, 'length'), completionMask: [1, 1, 1], turns: [{ completion: '' }] }
  const line = summarizeStep([episode, episode, other, other], 2, sums, [{ gradNorm: 1, skipped: false }])
  const { turnsMean, completionLengthMean, completionLengthMax } = line
  assert.equal([turnsMean, completionLengthMean, completionLengthMax], [1.5, 3, 3])
  assert.not(
    'turnsMean' in summarizeStep([rollout(1, 1, 'stop')], 1, sums, [{ gradNorm: 1, skipped: false }]),
  )
})

test('metrics of a split add up, and nothing is neutral', () => {
  assert.equal(addMetrics(sums, emptyMetrics), sums)
  const sum = addMetrics(sums, { ...sums, ratioMin: 0.25, ratioMax: 1 })
  assert.is(sum.tokens, 16)
  assert.is(sum.entropySum, 32)
  assert.is(sum.klClamped, 6)
  assert.is(sum.ratioMin, 0.25)
  assert.is(sum.ratioMax, 2)
  assert.equal(Object.keys(emptyMetrics), Object.keys(sums))
  const twice = addMetrics(sums, sums)
  for (const [name, value] of Object.entries(sums)) {
    assert.is(twice[name as keyof ObjectiveMetrics], /^ratioM/.test(name) ? value : 2 * value, name)
  }
})

test('of no rollouts, or no optimizer steps, there is no mean', () => {
  const one = [rollout(1, 1, 'stop')]
  const isRefused = (why: string) => (error: RapoError) =>
    error.code === 'ERR_RAPO_INVALID_ARGUMENT' && error.message === why
  assert.throws(
    () => summarizeStep([], 1, sums, [{ gradNorm: 1, skipped: false }]),
    isRefused('rollouts is empty'),
  )
  assert.throws(() => summarizeStep(one, 1, sums, []), isRefused('optimizerSteps is empty'))
})

test('means are over the trained tokens', () => {
  const { kl, entropy, ratioMean, approxKl } = meanMetrics(sums)
  assert.equal([kl, entropy, ratioMean, approxKl], [0.1, 2, 1.05, 0.005])
  assert.equal(new Set(Object.values(meanMetrics(emptyMetrics))), new Set([0]))
})

test('the fields are those that docs/files.md lists', () => {
  const section = readFileSync('docs/files.md', 'utf8').split('### metrics.jsonl')[1]!.split('\n###')[0]!
  const listed = [...section.matchAll(/`([a-zA-Z][a-zA-Z0-9]*)`/g)].map(match => match[1]!)
  const episode = { ...rollout(1, 1, 'stop'), turns: [{ completion: '' }] }
  const line = summarizeStep([episode], 1, sums, [{ gradNorm: 1, skipped: false }])
  const remeasured: Required<Remeasured> = {
    mismatchMean: 0,
    mismatchP99: 0,
    mismatchOutsideFraction: 0,
    entropyCoef: 0,
    importanceMean: 1,
    importanceMin: 1,
    importanceMax: 1,
    importanceTruncatedFraction: 0,
    maskedFraction: 0,
  }
  const filtered: Required<Filtered> = { generatedGroups: 1, filteredFraction: 0 }
  const measured: Required<RolloutMetrics> = {
    staleness: 0,
    stalenessMean: 0,
    mixedFraction: 0,
    trainerIdleFraction: 0,
    serversIdleFraction: 0,
  }
  const written = { ...line, ...remeasured, ...filtered, ...measured, step: 1, learningRate: 1 }
  assert.equal(Object.keys(written).sort(), listed.sort())
  assert.match(section, '`seconds: { rollout, score, train, save, sync }`')
})

test('the metrics of two parts: sums add up, of the ratio the extremes are taken', () => {
  const fields = Object.keys(emptyMetrics) as (keyof ObjectiveMetrics)[]
  const numbers = (from: number) =>
    Object.fromEntries(fields.map((field, i) => [field, from + i ** 2])) as unknown as ObjectiveMetrics
  const [a, b] = [numbers(3), numbers(100)]
  const sum = addMetrics(a, b)
  for (const field of fields) {
    const expected =
      field === 'ratioMin'
        ? Math.min(a[field], b[field])
        : field === 'ratioMax'
          ? Math.max(a[field], b[field])
          : a[field] + b[field]
    assert.is(sum[field], expected, field)
  }
})

test.run()
