/** What `rapo bench` measured: its file, its table, and what differs between two of them. */
import { readFileSync } from 'node:fs'
import { z } from 'zod'
import { RapoError } from '../base/errors.js'
import { asIoError } from '../base/files.js'

const spreadSchema = z.object({ median: z.number().positive(), low: z.number(), high: z.number() })

const resultSchema = z.object({
  name: z.string(),
  dtype: z.enum(['float32', 'bfloat16']),
  rows: z.int().positive(),
  vocabSize: z.int().positive(),
  /** Of one call: milliseconds. */
  ms: spreadSchema,
  /** How many times as long each other took in the same rounds, by its name. */
  ratios: z.record(z.string(), spreadSchema),
})

const reportSchema = z.object({
  machine: z.object({
    cpu: z.string(),
    cores: z.int().positive(),
    platform: z.string(),
    node: z.string(),
    isa: z.string(),
    threads: z.int().positive(),
    /** Absent: torch was not there. */
    torch: z.string().optional(),
  }),
  rapo: z.string(),
  rounds: z.int().positive(),
  results: z.array(resultSchema),
})

export type BenchResult = z.infer<typeof resultSchema>
export type BenchReport = z.infer<typeof reportSchema>
export type Machine = BenchReport['machine']

/** A file that `rapo bench --json` wrote. Throws ERR_RAPO_IO, or ERR_RAPO_FORMAT naming the field. */
export function readBench(file: string): BenchReport {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (cause) {
    throw asIoError(`cannot read ${file}`, cause)
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new RapoError('ERR_RAPO_FORMAT', `${file}: ${(cause as Error).message}`, { cause })
  }
  const parsed = reportSchema.safeParse(value)
  if (parsed.success) return parsed.data
  const { path, message } = parsed.error.issues[0]!
  throw new RapoError('ERR_RAPO_FORMAT', `${file}: ${path.join('.')}: ${message}`)
}

export function formatMachine({ cpu, cores, platform, node, isa, threads, torch }: Machine): string {
  const first = `${cpu}, ${cores} cores, ${platform}, Node ${node}${torch ? `, torch ${torch}` : ''}`
  return `${first}\nrapo kernels: ${isa}, ${threads} ${threads === 1 ? 'thread' : 'threads'}`
}

export const titleOf = ({ dtype, rows, vocabSize }: BenchResult) => `${dtype}, ${rows} × ${vocabSize} logits`

/** Results of one batch together; medians, and the ends of their 95 % intervals. */
export function formatBench({ machine, rapo, rounds, results }: BenchReport): string {
  const lines = [formatMachine(machine), `rapo ${rapo}; medians of ${rounds} rounds and their 95 % intervals`]
  const width = Math.max(...results.map(({ name }) => name.length))
  for (const [i, result] of results.entries()) {
    const title = titleOf(result)
    if (i === 0 || titleOf(results[i - 1]!) !== title) lines.push('', title)
    const { median, low, high } = result.ms
    const time = `${median.toFixed(2).padStart(9)} ms  ${`${low.toFixed(2)}–${high.toFixed(2)}`.padEnd(15)}`
    const ratios = Object.entries(result.ratios).map(([name, { median }]) => `${name} ${median.toFixed(2)}×`)
    lines.push(`  ${result.name.padEnd(width)} ${time}  ${ratios.join('  ')}`.trimEnd())
  }
  return lines.join('\n')
}

export interface Difference {
  /** What was measured: the batch, the name, and against whom. */
  readonly what: string
  readonly unit: 'ms' | '×'
  readonly before: number
  readonly after: number
  /** Their intervals have no point in common. */
  readonly isBeyondNoise: boolean
}

/** Everything that both measured. A time is better when smaller, a ratio when larger. */
export function compareBench(before: BenchReport, after: BenchReport): Difference[] {
  const keyOf = (result: BenchResult) => `${titleOf(result)}: ${result.name}`
  const earlier = new Map(before.results.map(result => [keyOf(result), result]))
  return after.results.flatMap(result => {
    const old = earlier.get(keyOf(result))
    if (!old) return []
    const of = (what: string, unit: Difference['unit'], a: BenchResult['ms'], b: BenchResult['ms']) => ({
      ...{ what, unit, before: a.median, after: b.median },
      isBeyondNoise: a.high < b.low || b.high < a.low,
    })
    const ratios = Object.entries(result.ratios).flatMap(([name, ratio]) => {
      const oldRatio = old.ratios[name]
      return oldRatio ? [of(`${keyOf(result)} against ${name}`, '×', oldRatio, ratio)] : []
    })
    return [of(keyOf(result), 'ms', old.ms, result.ms), ...ratios]
  })
}

export function formatComparison(before: BenchReport, after: BenchReport): string {
  const differences = compareBench(before, after)
  if (differences.length === 0) return 'the two files measured nothing alike'
  const lines: string[] = []
  const [from, to] = [before, after].map(({ machine }) => formatMachine(machine))
  if (from !== to) {
    lines.push(
      'not the same machine, instruction set or threads: compare the ratios alone',
      `a: ${from}`,
      `b: ${to}`,
      '',
    )
  }
  const width = Math.max(...differences.map(({ what }) => what.length))
  const isBetter = ({ unit, before, after }: Difference) => (unit === 'ms' ? after < before : after > before)
  for (const difference of differences) {
    const { what, unit, before, after, isBeyondNoise } = difference
    const number = (value: number) => `${value.toFixed(2)} ${unit}`.padStart(12)
    const percent = 100 * (after / before - 1)
    const change = `${percent < 0 ? '−' : '+'}${Math.abs(percent).toFixed(1)} %`.padStart(9)
    const verdict = isBeyondNoise ? (isBetter(difference) ? 'better' : 'worse') : 'within noise'
    lines.push(`${what.padEnd(width)}${number(before)} →${number(after)}${change}  ${verdict}`)
  }
  const beyond = differences.filter(({ isBeyondNoise }) => isBeyondNoise)
  lines.push(
    '',
    `${beyond.length} of ${differences.length} differ beyond noise (95 % intervals that do not touch)`,
  )
  return lines.join('\n')
}
