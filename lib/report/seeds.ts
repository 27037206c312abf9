/** Runs that differ by their seed alone are shown as one: means over the seeds, with the runs themselves kept beside. */
import { moments } from '../base/stats.js'
import { isInGroup } from '../eval/groups.js'
import { seedMean } from '../eval/seeds.js'
import { configDifferences } from './compare.js'
import { type Evaluation, type Run, type StepMetrics, withDistinctNames } from './load.js'

/** The fields in which runs of one configuration may differ. */
const ofTheRun = /^run\.(seed|output|threads)$/

/**
 * In place of the runs of each configuration that has several seeds one run with their means, where the first of them
 * stood. A configuration that has a seed twice, or evaluations of different problems, is left as it is.
 */
export function groupBySeed(runs: readonly Run[]): Run[] {
  const families: Run[][] = []
  for (const run of runs) {
    const family = families.find(([first]) => isSameButSeed(first!, run))
    if (family) family.push(run)
    else families.push([run])
  }
  const grouped = families.flatMap(family =>
    family.length > 1 && isWhole(family) ? [merged(family)] : family,
  )
  return withDistinctNames(grouped)
}

function isSameButSeed(a: Run, b: Run): boolean {
  if (!a.config || !b.config || a.isBase || b.isBase) return false
  return configDifferences([a.config.value, b.config.value]).every(({ field }) => ofTheRun.test(field))
}

/** The seed that a run was trained with, by its configuration. */
export function seedOf({ config }: Run): number | undefined {
  const seed = (config?.value.run as { seed?: unknown } | undefined)?.seed
  return typeof seed === 'number' ? seed : undefined
}

function isWhole(family: readonly Run[]): boolean {
  const seeds = new Set(family.map(seedOf))
  const problems = new Set(
    family.map(({ evaluation }) => JSON.stringify(evaluation && [evaluation.k, idsOf(evaluation)])),
  )
  return seeds.size === family.length && !seeds.has(undefined) && problems.size === 1
}

const idsOf = ({ perProblem }: Evaluation) => perProblem.map(({ id }) => id).sort()

function merged(family: readonly Run[]): Run {
  const [first] = family as [Run]
  const evaluations = family.flatMap(({ evaluation }) => evaluation ?? [])
  const metrics = family.flatMap(({ metrics }) => (metrics ? [metrics] : []))
  const evals = family.flatMap(({ evals }) => (evals ? [evals] : []))
  return {
    ...first,
    name: sharedName(family),
    seeds: family,
    ...(evaluations.length > 0 && { evaluation: mergeEvaluations(evaluations) }),
    ...(metrics.length > 0 && { metrics: mergeMetrics(metrics) }),
    ...(evals.length > 0 && { evals: mergeMetrics(evals) }),
  }
}

/** The name that all have, or else what all names begin with. */
function sharedName(family: readonly Run[]): string {
  const names = family.map(({ evaluation, name }) => evaluation?.name ?? name)
  let length = 0
  while (names.every(name => name[length] !== undefined && name[length] === names[0]![length])) length++
  const start = names[0]!.slice(0, length)
  if (names.every(name => name.length === length)) return start
  return start.replace(/[\s(._/-]*(seed)?[\s(._/-]*$/i, '') || names[0]!
}

/** pass@k is the mean over the seeds, low and high are the interval over seeds, overProblems that over problems. */
function mergeEvaluations(evaluations: readonly Evaluation[]): Evaluation {
  const [first] = evaluations as [Evaluation]
  const ks = sharedKs(evaluations)
  const groups: Evaluation['groups'] = {}
  // maj@k of several seeds is left out: files do not say what its interval over seeds would be.
  for (const [name, { majority: _, ...group }] of Object.entries(first.groups)) {
    const own = evaluations.map(({ perProblem }) => perProblem.filter(problem => isInGroup(problem, name)))
    if (own[0]!.length === 0) continue
    const { mean, problems, seeds } = seedMean(own, ks)
    const ends = { low: seeds.low.map(asShare), high: seeds.high.map(asShare) }
    groups[name] = { ...group, passAtK: [...mean], ...ends, overProblems: problems }
  }
  const average = (read: (evaluation: Evaluation) => number | undefined) =>
    moments(evaluations.map(evaluation => read(evaluation) ?? 0)).mean
  return {
    ...first,
    k: ks,
    groups,
    seconds: average(({ seconds }) => seconds),
    tokens: Math.round(average(({ tokens }) => tokens)),
  }
}

/** An interval by Student's t can reach beyond what a probability can be. */
const asShare = (value: number) => (Number.isNaN(value) ? null : Math.min(1, Math.max(0, value)))

/** The values of k that all evaluations have, and enough samples of each problem for. */
export function sharedKs(evaluations: readonly Evaluation[]): number[] {
  const fewest = Math.min(...evaluations.flatMap(({ perProblem }) => perProblem.map(({ n }) => n)))
  return evaluations[0]!.k.filter(k => k <= fewest && evaluations.every(other => other.k.includes(k)))
}

/** The mean of each number over the seeds that have the step. */
function mergeMetrics(runs: readonly (readonly StepMetrics[])[]): StepMetrics[] {
  const bySteps = new Map<number, StepMetrics[]>()
  for (const line of runs.flat()) bySteps.set(line.step, [...(bySteps.get(line.step) ?? []), line])
  return [...bySteps.values()]
    .sort((a, b) => a[0]!.step - b[0]!.step)
    .map(lines => meanOf(lines) as StepMetrics)
}

function meanOf(values: readonly unknown[]): unknown {
  const given = values.filter(value => value != null)
  if (given.length === 0) return null
  if (given.every(value => typeof value === 'number')) {
    return given.reduce((sum, value) => sum + value, 0) / given.length
  }
  if (!given.every(value => typeof value === 'object' && !Array.isArray(value))) return given[0]
  const names = new Set(given.flatMap(value => Object.keys(value as object)))
  return Object.fromEntries(
    [...names].map(name => [name, meanOf(given.map(value => (value as Record<string, unknown>)[name]))]),
  )
}
