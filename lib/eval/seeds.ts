/** pass@k over several seeds of training: means, and paired differences, each with an interval over seeds and one over problems. */
import { bootstrapMeans } from '../base/bootstrap.js'
import { deriveSeed } from '../base/random.js'
import { meanInterval, passAtK } from '../base/stats.js'
import type { ProblemResult } from './groups.js'

/** What one seed's evaluation found, problem by problem. */
export type SeedResult = readonly Pick<ProblemResult, 'id' | 'n' | 'correct'>[]

/**
 * A mean over seeds and problems, at each k.
 *
 * - `seeds`: the 95 % interval over seeds (Student's t): where the mean over ever more seeds would lie, on these same problems.
 *   NaN where there is one seed.
 * - `problems`: the 95 % interval over problems (bootstrap): where the mean over ever more problems of this kind would lie,
 *   with these same trained models.
 */
export interface SeedMean {
  readonly mean: readonly number[]
  readonly standardError: readonly number[]
  readonly seeds: { readonly low: readonly number[]; readonly high: readonly number[] }
  readonly problems: { readonly low: readonly number[]; readonly high: readonly number[] }
}

/** Number of resamples behind the intervals over problems. */
const RESAMPLES = 1000

/** pass@k of one variant. All seeds have the same problems. */
export function seedMean(results: readonly SeedResult[], ks: readonly number[]): SeedMean {
  return average(results.map(result => valuesOf(result, ks)))
}

/**
 * pass@k of `left` minus that of `right`, problem by problem; left[i] and right[i] belong to the same seed. Since both have
 * the same problems and seeds, what these have in common cancels: the intervals are narrower than those of the two means.
 */
export function pairedDifference(
  left: readonly SeedResult[],
  right: readonly SeedResult[],
  ks: readonly number[],
): SeedMean {
  return average(
    left.map((result, seed) => {
      const other = new Map(right[seed]!.map(problem => [problem.id, problem]))
      const partners = result.map(({ id }) => other.get(id)!)
      const [mine, theirs] = [valuesOf(result, ks), valuesOf(partners, ks)]
      return mine.map((row, problem) => row.map((value, k) => value - theirs[problem]![k]!))
    }),
  )
}

/** One row a problem, one column a k. */
const valuesOf = (result: SeedResult, ks: readonly number[]) =>
  result.map(({ n, correct }) => ks.map(k => passAtK(n, correct, k)))

function average(seeds: readonly (readonly (readonly number[])[])[]): SeedMean {
  const problems = seeds[0]!.map((row, problem) =>
    row.map((_, k) => seeds.reduce((sum, rows) => sum + rows[problem]![k]!, 0) / seeds.length),
  )
  const overProblems = bootstrapMeans(problems, RESAMPLES, deriveSeed(1, 'seeds'))
  const overSeeds = overProblems.mean.map((_, k) =>
    meanInterval(seeds.map(rows => rows.reduce((sum, row) => sum + row[k]!, 0) / rows.length)),
  )
  return {
    mean: overProblems.mean,
    standardError: overSeeds.map(({ standardError }) => standardError),
    seeds: { low: overSeeds.map(({ low }) => low), high: overSeeds.map(({ high }) => high) },
    problems: overProblems,
  }
}
