/** What a study found: pass@k of each variant over its seeds, and the differences to the baseline. */
import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { type EvalResult, isInGroup, TABLE_K } from '../eval/groups.js'
import { pairedDifference, type SeedMean, type SeedResult, seedMean } from '../eval/seeds.js'
import { baseDir, runDir, type StudyPlan } from './plan.js'

/** study.json (docs/files.md). */
export interface StudySummary {
  readonly baseline: string
  readonly k: readonly number[]
  readonly samplesPerProblem: number
  readonly groups: Readonly<Record<string, StudyGroup>>
}

export interface StudyGroup {
  readonly problems: number
  readonly variants: readonly StudyVariant[]
}

export interface StudyVariant {
  readonly name: string
  /** The seeds that are measured; none of the base model's. */
  readonly seeds: readonly number[]
  readonly passAtK: SeedMean
  /** This variant minus the baseline, over the seeds that both have. Absent for the baseline itself. */
  readonly difference?: SeedMean & { readonly pairs: number }
}

interface Measured {
  readonly name: string
  readonly results: ReadonlyMap<number, EvalResult>
}

/** A run's eval.json; undefined where there is none. Throws ERR_RAPO_FORMAT for a file that is damaged. */
export function readResult(run: string): EvalResult | undefined {
  const file = path.join(run, 'eval.json')
  if (!existsSync(file)) return undefined
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as EvalResult
  } catch (cause) {
    throw new RapoError('ERR_RAPO_FORMAT', `${file} is damaged: ${(cause as Error).message}`, { cause })
  }
}

/** Key of the base model's one result, which has no seed of training. */
const UNTRAINED = -1

/** Reads the eval.json of every run that is measured; at least one must be. */
export function summarizeStudy(plan: StudyPlan): StudySummary {
  const base = plan.hasBase ? readResult(baseDir(plan)) : undefined
  const measured: Measured[] = [
    ...(base ? [{ name: 'base', results: new Map([[UNTRAINED, base]]) }] : []),
    ...plan.variants.map(variant => {
      const results = plan.seeds.map(seed => [seed, readResult(runDir(variant, seed))] as const)
      return { name: variant.name, results: new Map(results.filter(hasResult)) }
    }),
  ].filter(({ results }) => results.size > 0)
  const first = [...measured[0]!.results.values()][0]!
  const ks = first.k
  const baseline = measured.find(({ name }) => name === plan.baseline)
  const groups = Object.entries(first.groups).map(([group, { problems }]) => {
    const variants = measured.map(variant => summarizeVariant(variant, baseline, group, ks))
    return [group, { problems, variants }] as const
  })
  return {
    baseline: plan.baseline,
    k: ks,
    samplesPerProblem: first.samplesPerProblem,
    groups: Object.fromEntries(groups),
  }
}

function hasResult(entry: readonly [number, EvalResult | undefined]): entry is readonly [number, EvalResult] {
  return entry[1] !== undefined
}

function summarizeVariant(
  variant: Measured,
  baseline: Measured | undefined,
  group: string,
  ks: readonly number[],
): StudyVariant {
  const { name, results } = variant
  const resultOf = ({ perProblem }: EvalResult): SeedResult =>
    perProblem.filter(problem => isInGroup(problem, group))
  const seeds = [...results.keys()].filter(seed => seed !== UNTRAINED)
  const passAtK = seedMean([...results.values()].map(resultOf), ks)
  if (!baseline || baseline === variant) return { name, seeds, passAtK }
  // The base model has one result, which every seed of the baseline is compared with.
  const pairs = [...baseline.results].flatMap(([seed, theirs]) => {
    const mine = results.get(seed) ?? results.get(UNTRAINED)
    return mine ? [[mine, theirs] as const] : []
  })
  if (pairs.length === 0) return { name, seeds, passAtK }
  const [left, right] = [0, 1].map(side => pairs.map(pair => resultOf(pair[side]!)))
  return { name, seeds, passAtK, difference: { ...pairedDifference(left!, right!, ks), pairs: pairs.length } }
}

/** The tables as lines of text. */
export function formatStudy({ k, groups, baseline, samplesPerProblem }: StudySummary): string {
  const shown = k.flatMap((value, i) => (TABLE_K.includes(value) ? [i] : []))
  const all = Object.values(groups)
  const names = all[0]!.variants.map(({ name }) => name)
  const width = Math.max(...names.map(name => name.length), 6)
  const row = (head: string, seeds: string, cells: readonly string[]) =>
    `${head.padEnd(width)}  ${seeds.padStart(5)}  ${cells.map(cell => cell.padStart(16)).join('')}`.trimEnd()
  const header = row(
    'pass@k',
    'seeds',
    shown.map(i => String(k[i])),
  )
  const cells = ({ mean, standardError }: SeedMean, isSigned: boolean) =>
    shown.map(i => {
      const sign = isSigned && mean[i]! >= 0 ? '+' : ''
      const error = Number.isNaN(standardError[i]!) ? '' : ` ± ${standardError[i]!.toFixed(3)}`
      return `${sign}${mean[i]!.toFixed(3)}${error}`
    })
  const tables = Object.entries(groups).map(([group, { problems, variants }]) => {
    const lines = variants.map(({ name, seeds, passAtK }) =>
      row(name, seeds.length === 0 ? '–' : String(seeds.length), cells(passAtK, false)),
    )
    const differences = variants.flatMap(({ name, difference }) =>
      difference ? [row(name, String(difference.pairs), cells(difference, true))] : [],
    )
    return [
      `${group} (${problems} problems)`,
      header,
      ...lines,
      ...(differences.length > 0 ? [`minus ${baseline}, paired by seed and problem`, ...differences] : []),
    ].join('\n')
  })
  const title = `pass@k from ${samplesPerProblem} samples a problem; mean ± standard error over seeds`
  return [title, ...tables].join('\n\n')
}
