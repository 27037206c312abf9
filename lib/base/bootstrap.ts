/** Bootstrap intervals of means. */
import { createRandom } from './random.js'

/**
 * The mean of each column over the rows, and the mean's 95 % bootstrap interval: percentiles of the means over rows drawn with
 * replacement. The same seed gives the same numbers.
 *
 * @param rows one row per problem, with one value per column
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

/** The quantile of sorted values, interpolated linearly between the two nearest. */
function quantile(sorted: Float64Array, q: number): number {
  const at = q * (sorted.length - 1)
  const below = Math.floor(at)
  const above = Math.min(below + 1, sorted.length - 1)
  return sorted[below]! + (sorted[above]! - sorted[below]!) * (at - below)
}
