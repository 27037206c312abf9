/** Moments, quantiles, bootstrap intervals, and the estimate of pass@k. */
import { RapoError } from './errors.js'
import { createRandom } from './random.js'

/** Mean, and standard deviation with count − correction in the denominator. */
export function moments(values: readonly number[], correction = 0): { mean: number; std: number } {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0)
  return { mean, std: Math.sqrt(squares / Math.max(1, values.length - correction)) }
}

/**
 * The unbiased estimate of the probability that at least one of k samples is correct, from c correct ones of n
 * (Chen et al. 2021): 1 − C(n−c, k) / C(n, k) = 1 − Π_{i=n−c+1..n} (1 − k/i). Exact to rounding for any n, k ≤ n.
 */
export function passAtK(n: number, c: number, k: number): number {
  if (!([n, c, k].every(Number.isSafeInteger) && k >= 1 && k <= n && c >= 0 && c <= n)) {
    throw new RapoError(
      'ERR_RAPO_INVALID_ARGUMENT',
      `passAtK(n=${n}, c=${c}, k=${k}) needs 1 ≤ k ≤ n, 0 ≤ c ≤ n, all of them whole numbers`,
    )
  }
  if (n - c < k) return 1
  let logProduct = 0
  for (let i = n - c + 1; i <= n; i++) logProduct += Math.log1p(-k / i)
  return -Math.expm1(logProduct)
}

/** 1, 2, 4, … up to `largest`, or else to n / 2: beyond that the estimate rests on too few distinct subsets. */
export function listKs(n: number, largest = 0): number[] {
  const ks: number[] = []
  for (let k = 1; k <= Math.min(n, largest || n / 2); k *= 2) ks.push(k)
  return ks
}

/**
 * The mean of each column over the rows, and its 95 % bootstrap interval: percentiles of the means over rows drawn with
 * replacement. Same seed, same numbers.
 *
 * @param rows one a problem, one value a column
 */
export function bootstrapMeans(rows: readonly (readonly number[])[], resamples: number, seed: number) {
  const columns = rows[0]!.length
  const random = createRandom(seed)
  const meanOf = (chosen: readonly (readonly number[])[]) => {
    const sums = new Float64Array(columns)
    for (const row of chosen) for (let column = 0; column < columns; column++) sums[column]! += row[column]!
    return sums.map(sum => sum / chosen.length)
  }
  const draws = Array.from({ length: resamples }, () => meanOf(rows.map(() => random.pick(rows))))
  const low: number[] = []
  const high: number[] = []
  for (let column = 0; column < columns; column++) {
    const sorted = Float64Array.from(draws, draw => draw[column]!).sort()
    low.push(quantile(sorted, 0.025))
    high.push(quantile(sorted, 0.975))
  }
  return { mean: [...meanOf(rows)], low, high }
}

/** Between the two nearest of the sorted values, linearly. */
function quantile(sorted: Float64Array, q: number): number {
  const at = q * (sorted.length - 1)
  const below = Math.floor(at)
  const above = Math.min(below + 1, sorted.length - 1)
  return sorted[below]! + (sorted[above]! - sorted[below]!) * (at - below)
}
