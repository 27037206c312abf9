/** Results of an evaluation: all problems, those of one difficulty, those that are hard for the base model. */

import { bootstrapMeans } from '../base/bootstrap.js'
import { deriveSeed } from '../base/random.js'
import { passAtK } from '../base/stats.js'
import { plural } from '../base/text.js'
import { majAtK } from './majority.js'

/** What `eval.json` says about all problems, those of one difficulty, or those that are hard for the base model. */
export interface EvalGroup {
  readonly problems: number
  /** One entry per k, as in low and high. */
  readonly passAtK: readonly number[]
  readonly low: readonly number[]
  readonly high: readonly number[]
  /** maj@k with its interval, one entry a k; absent where the verifier does not say what a completion answers. */
  readonly majority?: {
    readonly majAtK: readonly number[]
    readonly low: readonly number[]
    readonly high: readonly number[]
  }
}

export interface ProblemResult {
  readonly id: string
  readonly difficulty?: string
  /** Whether the problem is hard for the model of config.eval.base: see eval.hardBelow. */
  readonly hardForBase?: boolean
  readonly n: number
  readonly correct: number
  /** For each wrong answer the number of completions that have it, descending. Absent where the verifier gives no answers. */
  readonly wrongVotes?: readonly number[]
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

/** The values of k that tables show where there are many. */
export const TABLE_K: readonly number[] = [1, 4, 16, 64, 256, 1024]

/** pass@k and maj@k of all problems and of each group, from how many samples of each were correct and what the others answered. */
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
    const majority = majorityOf(members, ks, resamples, deriveSeed(seed, 'bootstrap', name))
    groups[name] = { problems: members.length, passAtK: mean, low, high, ...(majority && { majority }) }
  }
  return groups
}

/** With the resamples of pass@k, so that maj@1 has the interval of pass@1. */
function majorityOf(
  results: readonly ProblemResult[],
  ks: readonly number[],
  resamples: number,
  seed: number,
) {
  const rows = results.flatMap(({ id, n, correct, wrongVotes }) =>
    wrongVotes ? [majAtK({ n, correct, wrongVotes }, ks, deriveSeed(seed, 'majority', id))] : [],
  )
  if (rows.length < results.length) return undefined
  const { mean, low, high } = bootstrapMeans(rows, resamples, seed)
  return { majAtK: mean, low, high }
}

/** pass@k, and maj@k where it is known, of several results side by side, one table per group, as lines of text. */
export function formatPassAtK(results: readonly EvalResult[], ks: readonly number[] = results[0]!.k): string {
  const groups = Object.keys(results[0]!.groups)
  const width = Math.max(...results.map(result => result.name.length), 4)
  const shown = ks.filter(k => results.every(result => result.k.includes(k)))
  const table = (
    title: string,
    group: string,
    read: (group: EvalGroup | undefined, at: number) => number | undefined,
  ) => {
    const header = `${title.padEnd(width)}  ${shown.map(k => String(k).padStart(5)).join(' ')}`
    const rows = results.map(({ name, k, groups }) => {
      const values = shown.map(wanted => read(groups[group], k.indexOf(wanted)))
      const cells = values.map(value => (value === undefined ? '–' : value.toFixed(3)).padStart(5))
      return `${name.padEnd(width)}  ${cells.join(' ')}`
    })
    return [header, ...rows]
  }
  const tables = groups.map(group => {
    const hasMajority = results.some(({ groups }) => groups[group]?.majority)
    return [
      `${group} (${plural(results[0]!.groups[group]!.problems, 'problem')})`,
      ...table('pass@k', group, (group, at) => group?.passAtK[at]),
      ...(hasMajority ? table('maj@k', group, (group, at) => group?.majority?.majAtK[at]) : []),
    ].join('\n')
  })
  return tables.join('\n\n')
}
