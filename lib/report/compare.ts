/** Finds the differences between runs: in their configurations, and in the conditions of their evaluations. */
import { moments } from '../base/stats.js'
import { isInGroup } from '../eval/groups.js'
import type { Evaluation, Run } from './load.js'

/** A field in which configurations differ: one text per configuration, undefined if it lacks the field. */
export interface Difference {
  readonly field: string
  readonly values: readonly (string | undefined)[]
}

/** The fields in the order of their first appearance. */
export function configDifferences(configs: readonly Readonly<Record<string, unknown>>[]): Difference[] {
  const flat = configs.map(config => flatten(config))
  const fields = new Set(flat.flatMap(config => [...config.keys()]))
  return [...fields]
    .map(field => ({ field, values: flat.map(config => config.get(field)) }))
    .filter(({ values }) => values.some(value => value !== values[0]))
}

/** { objective: { klCoef: 0.02 } } as objective.klCoef → 0.02; lists stay whole. */
function flatten(value: unknown, prefix = '', into = new Map<string, string>()) {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
    for (const [key, inner] of Object.entries(value)) flatten(inner, prefix ? `${prefix}.${key}` : key, into)
  } else {
    into.set(prefix, typeof value === 'string' ? value : JSON.stringify(value))
  }
  return into
}

/** The reasons why the runs' pass@k may not be compared; empty if it may. */
export function evaluationConflicts(runs: readonly Run[]): string[] {
  const evaluated = runs.filter(
    (run): run is Run & { evaluation: Evaluation } => run.evaluation !== undefined,
  )
  const conflicts: string[] = []
  const compare = (what: string, read: (evaluation: Evaluation) => string) => {
    const names = new Map<string, string[]>()
    for (const { name, evaluation } of evaluated) {
      const value = read(evaluation)
      names.set(value, [...(names.get(value) ?? []), name])
    }
    if (names.size < 2) return
    const parts = [...names].map(([value, who]) => `${value} (${listed(who)})`)
    conflicts.push(`${what}: ${parts.join('; ')}`)
  }
  compare('Different problem files', evaluation => evaluation.problems)
  compare('Different numbers of samples a problem', evaluation => String(evaluation.samplesPerProblem))
  for (const field of ['temperature', 'topP', 'topK', 'minP', 'maxNewTokens'] as const) {
    compare(`Different ${field}`, evaluation => String(evaluation[field] ?? 'not recorded'))
  }
  if (new Set(evaluated.map(({ evaluation }) => problemSet(evaluation))).size > 1 && conflicts.length === 0) {
    conflicts.push('The problem files have one name, but the problems in them differ')
  }
  return conflicts
}

const listed = (names: readonly string[]) =>
  names.length <= 4 ? names.join(', ') : `${names.slice(0, 3).join(', ')} and ${names.length - 3} more`

const problemSet = (evaluation: Evaluation) =>
  JSON.stringify(evaluation.perProblem.map(({ id, difficulty }) => [id, difficulty ?? '']).sort())

/**
 * The number of problems that a run solved at least once; which of them the base did not solve (gained), and which the base
 * solved and the run did not (lost).
 */
export interface Coverage {
  readonly problems: number
  readonly solved: number
  readonly gained?: number
  readonly lost?: number
}

/**
 * For the problems of one group ('all' or a difficulty). gained and lost are given only if the base has the same problems.
 * Of a run that stands for several seeds: the means over them.
 */
export function coverage(run: Run, base: Evaluation | undefined, group: string): Coverage {
  const evaluations = (run.seeds ?? [run]).flatMap(({ evaluation }) => evaluation ?? [])
  const each = evaluations.map(evaluation => coverageOf(evaluation, base, group))
  const meanOf = (field: 'solved' | 'gained' | 'lost') => moments(each.map(one => one[field] ?? 0)).mean
  const hasChange = each.every(({ gained }) => gained !== undefined)
  return {
    problems: each[0]!.problems,
    solved: meanOf('solved'),
    ...(hasChange && { gained: meanOf('gained'), lost: meanOf('lost') }),
  }
}

function coverageOf(evaluation: Evaluation, base: Evaluation | undefined, group: string): Coverage {
  const inGroup = ({ perProblem }: Evaluation) => perProblem.filter(problem => isInGroup(problem, group))
  const own = inGroup(evaluation)
  const solved = own.filter(({ correct }) => correct > 0)
  const counts = { problems: own.length, solved: solved.length }
  if (!base || base === evaluation || problemSet(base) !== problemSet(evaluation)) return counts
  const ownSolved = new Set(solved.map(({ id }) => id))
  const baseSolved = inGroup(base).filter(({ correct }) => correct > 0)
  const kept = baseSolved.filter(({ id }) => ownSolved.has(id)).length
  return { ...counts, gained: solved.length - kept, lost: baseSolved.length - kept }
}
