/** Results of an evaluation: all problems, those of one difficulty, those that are hard for the base model. */

import { bootstrapMeans } from '../base/bootstrap.js'
import { deriveSeed } from '../base/random.js'
import { passAtK } from '../base/stats.js'
import { plural } from '../base/text.js'

/** What `eval.json` says about all problems, those of one difficulty, or those that are hard for the base model. */
export interface EvalGroup {
  readonly problems: number
  /** One entry per k, as in low and high. */
  readonly passAtK: readonly number[]
  readonly low: readonly number[]
  readonly high: readonly number[]
}

export interface ProblemResult {
  readonly id: string
  readonly difficulty?: string
  /** Whether the problem is hard for the model of config.eval.base: see eval.hardBelow. */
  readonly hardForBase?: boolean
  readonly n: number
  readonly correct: number
}

/** Content of eval.json (docs/files.md). */
export interface EvalResult {
  readonly model: string
  readonly name: string
  readonly problems: string
  readonly samplesPerProblem: number
  readonly temperature: number
  readonly topP: number
  readonly topK: number
  readonly minP: number
  readonly seed: number
  readonly maxNewTokens: number
  readonly k: readonly number[]
  /** "all", "hard for base" if a base is named, and one group per difficulty. */
  readonly groups: Readonly<Record<string, EvalGroup>>
  readonly perProblem: readonly ProblemResult[]
  readonly seconds: number
  readonly tokens: number
}

export const HARD_FOR_BASE = 'hard for base'

export function isInGroup(
  result: { readonly difficulty?: string | undefined; readonly hardForBase?: boolean | undefined },
  group: string,
): boolean {
  if (group === HARD_FOR_BASE && result.hardForBase !== undefined) return result.hardForBase
  return group === 'all' || result.difficulty === group
}

/** pass@k of all problems and of each group, from the number of correct samples of each problem. */
export function summarizeEval(
  results: readonly ProblemResult[],
  ks: readonly number[],
  resamples: number,
  seed: number,
): Record<string, EvalGroup> {
  const difficulties = [...new Set(results.flatMap(result => result.difficulty ?? []))].sort()
  const hard = results.some(result => result.hardForBase) ? [HARD_FOR_BASE] : []
  const groups: Record<string, EvalGroup> = {}
  for (const name of ['all', ...hard, ...difficulties]) {
    const members = results.filter(result => isInGroup(result, name))
    const rows = members.map(({ n, correct }) => ks.map(k => passAtK(n, correct, k)))
    const { mean, low, high } = bootstrapMeans(rows, resamples, deriveSeed(seed, 'bootstrap', name))
    groups[name] = { problems: members.length, passAtK: mean, low, high }
  }
  return groups
}

/** pass@k of several results side by side, one table per group, as lines of text. */
export function formatPassAtK(results: readonly EvalResult[], ks: readonly number[] = results[0]!.k): string {
  const groups = Object.keys(results[0]!.groups)
  const width = Math.max(...results.map(result => result.name.length), 4)
  const tables = groups.map(group => {
    const shown = ks.filter(k => results.every(result => result.k.includes(k)))
    const header = `${'pass@k'.padEnd(width)}  ${shown.map(k => String(k).padStart(5)).join(' ')}`
    const rows = results.map(({ name, k, groups }) => {
      const values = shown.map(wanted => groups[group]?.passAtK[k.indexOf(wanted)])
      const cells = values.map(value => (value === undefined ? '–' : value.toFixed(3)).padStart(5))
      return `${name.padEnd(width)}  ${cells.join(' ')}`
    })
    const count = results[0]!.groups[group]!.problems
    return [`${group} (${plural(count, 'problem')})`, header, ...rows].join('\n')
  })
  return tables.join('\n\n')
}
