import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { createRandom } from '../../lib/base/random.js'
import { meanInterval, passAtK, studentQuantile } from '../../lib/base/stats.js'
import { pairedDifference, seedMean } from '../../lib/eval/seeds.js'

const near = (actual: number, expected: number, tolerance = 1e-12) =>
  assert.ok(Math.abs(actual - expected) <= tolerance, `${actual} is not ${expected}`)

test("Student's t: the values of the printed tables", () => {
  // Abramowitz and Stegun, table 26.10, to its three decimals.
  const table = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    9: 2.262,
    10: 2.228,
    30: 2.042,
    120: 1.98,
  }
  for (const [degrees, value] of Object.entries(table)) {
    near(studentQuantile(0.975, Number(degrees)), value, 5.001e-4)
  }
  near(studentQuantile(0.95, 9), 1.833, 5.001e-4)
})

test('the interval of a mean; a single value has none', () => {
  const { mean, standardError, low, high } = meanInterval([1, 2, 3, 6])
  near(mean, 3)
  near(standardError, Math.sqrt(14 / 3 / 4))
  near(high - mean, 3.182446305 * standardError, 1e-8)
  near(mean - low, high - mean)
  const single = meanInterval([5])
  assert.equal([single.mean, single.low, single.high], [5, Number.NaN, Number.NaN])
})

/** Results of three problems with 16 samples each, differently solved by each seed. */
function resultsOf(seed: number, bonus = 0) {
  const random = createRandom(seed)
  return ['a', 'b', 'c'].map(id => ({ id, n: 16, correct: Math.min(16, random.below(12) + bonus) }))
}

test('means over seeds: seeds and problems as plain loops say', () => {
  const ks = [1, 4]
  const results = [1, 2, 3].map(seed => resultsOf(seed))
  const summary = seedMean(results, ks)
  for (const [i, k] of ks.entries()) {
    const means = results.map(
      result => result.reduce((sum, { n, correct }) => sum + passAtK(n, correct, k), 0) / result.length,
    )
    const expected = meanInterval(means)
    near(summary.mean[i]!, expected.mean)
    near(summary.standardError[i]!, expected.standardError)
    near(summary.seeds.low[i]!, expected.low)
    near(summary.seeds.high[i]!, expected.high)
    assert.ok(summary.problems.low[i]! <= expected.mean && expected.mean <= summary.problems.high[i]!)
  }
})

test('paired differences: problems are matched by id, and what both share cancels', () => {
  const right = [1, 2, 3].map(seed => resultsOf(seed))
  // Two samples more are right of every problem: at k = 1 that is 1/8 more of each, whatever the seed and the problem.
  const left = [1, 2, 3].map(seed => resultsOf(seed, 2).reverse())
  const { mean, standardError, seeds, problems } = pairedDifference(left, right, [1])
  for (const value of [mean[0]!, seeds.low[0]!, seeds.high[0]!, problems.low[0]!, problems.high[0]!]) {
    near(value, 1 / 8)
  }
  near(standardError[0]!, 0)
})

test('one seed has an interval over problems alone', () => {
  const { seeds, problems } = seedMean([resultsOf(4)], [1])
  assert.equal([seeds.low[0], seeds.high[0]], [Number.NaN, Number.NaN])
  assert.ok(problems.low[0]! < problems.high[0]!)
})

test.run()
