/** Reads a run directory (docs/files.md) for the report. */
import { createReadStream, existsSync, readFileSync, realpathSync } from 'node:fs'
import path from 'node:path'
import { parse as parseYaml } from 'yaml'
import { z } from 'zod'
import { RapoError } from '../base/errors.js'
import { statOf, withPlace } from '../base/files.js'

export interface Run {
  /** Different from the names of all other runs in the report. */
  readonly name: string
  /** As given. */
  readonly dir: string
  /** Whether the run is the base: it was given as the base, or is the only run without training. */
  readonly isBase: boolean
  readonly config?: { readonly text: string; readonly value: Readonly<Record<string, unknown>> }
  /** Steps in ascending order, each once. Absent if there is no metrics.jsonl. */
  readonly metrics?: readonly StepMetrics[]
  readonly samples?: readonly Stage[]
  /** Evaluations during training, in ascending order of their steps: pass@1 and others by their names. */
  readonly evals?: readonly StepMetrics[]
  /** Of evaluations during training. */
  readonly evalStages?: readonly Stage[]
  readonly evaluation?: Evaluation
  readonly evalSamples?: readonly Sample[]
  /** The runs whose means this one shows: they differ by their seed alone. Absent for a run that is one. */
  readonly seeds?: readonly Run[]
}

/** One line of metrics.jsonl. A field that is null or absent is a gap. */
export type StepMetrics = z.infer<typeof metricsSchema>
export type Sample = z.infer<typeof sampleSchema>
export type Evaluation = Omit<z.infer<typeof evaluationSchema>, 'groups'> & {
  groups: Record<string, Group>
}
type Group = z.infer<typeof groupSchema> & {
  /** Of means over seeds, whose low and high are the interval over seeds. No file has this field. */
  overProblems?: { readonly low: readonly number[]; readonly high: readonly number[] }
}

/** Some completions of one stage of training. */
export interface Stage {
  readonly firstStep: number
  readonly lastStep: number
  readonly samples: readonly Sample[]
}

/** Whether pass@k counts the completion as correct. */
export const isRight = ({ correct, reward }: Sample) => correct ?? reward >= 1

/** Number of stages into which the steps of training are divided. */
const STAGES = 5
/** Number of right and of wrong completions kept from each stage, and from the evaluation. */
const KEPT_OF_STAGE = 2
const KEPT_OF_EVALUATION = 6

const value = z.number().nullish()
const metricsSchema = z
  .object({
    step: z.int().nonnegative(),
    seconds: z.record(z.string(), value).optional(),
    rewards: z.record(z.string(), z.record(z.string(), value)).optional(),
  })
  .catchall(z.unknown())

const sampleSchema = z.object({
  step: z.int().nonnegative().optional(),
  problemId: z.union([z.string(), z.number()]).transform(String),
  prompt: z.string(),
  /** As the model got it; absent in files of older versions. */
  renderedPrompt: z.string().optional(),
  completion: z.string(),
  reward: z.number(),
  reason: z.string().default(''),
  finishReason: z.string().default(''),
  /** Of an episode. */
  turns: z.array(z.object({ completion: z.string(), observation: z.string().optional() })).optional(),
  /** With several rewards: whether the verifier's says so, and each. */
  correct: z.boolean().optional(),
  rewards: z
    .array(
      z.object({
        name: z.string(),
        weight: z.number().default(1),
        reward: z.number(),
        reason: z.string().default(''),
      }),
    )
    .default([]),
})

const groupSchema = z.object({
  problems: z.number(),
  passAtK: z.array(z.number()),
  low: z.array(z.number().nullable()),
  high: z.array(z.number().nullable()),
  majority: z
    .object({
      majAtK: z.array(z.number()),
      low: z.array(z.number().nullable()),
      high: z.array(z.number().nullable()),
    })
    .optional(),
})

/** A line of evals.jsonl, as far as the report reads it. */
const evalLineSchema = z.object({
  step: z.int().nonnegative(),
  k: z.array(z.int().positive()).min(1),
  groups: z.object({ all: groupSchema }),
})

const evaluationSchema = z
  .object({
    model: z.string(),
    name: z.string().optional(),
    problems: z.string(),
    samplesPerProblem: z.number(),
    temperature: z.number().optional(),
    topP: z.number().optional(),
    topK: z.number().optional(),
    minP: z.number().optional(),
    maxNewTokens: z.number().optional(),
    k: z.array(z.int().positive()),
    groups: z.record(z.string(), groupSchema),
    perProblem: z
      .array(
        z.object({
          id: z.union([z.string(), z.number()]).transform(String),
          difficulty: z.string().optional(),
          hardForBase: z.boolean().optional(),
          n: z.number(),
          correct: z.number(),
        }),
      )
      .default([]),
    seconds: z.number().optional(),
    tokens: z.number().optional(),
  })
  .superRefine((evaluation, context) => {
    for (const [name, group] of Object.entries(evaluation.groups)) {
      for (const field of ['passAtK', 'low', 'high'] as const) {
        const [length, expected] = [group[field].length, evaluation.k.length]
        if (length !== expected) {
          const message = `has ${length} values, but k has ${expected}`
          context.addIssue({ code: 'custom', path: ['groups', name, field], message })
        }
      }
    }
    if (!evaluation.groups.all)
      context.addIssue({ code: 'custom', path: ['groups', 'all'], message: 'is missing' })
  })

/** Reads all runs, the base first. Throws a RapoError that names the file, and the line or field. */
export async function loadRuns(dirs: readonly string[], base?: string): Promise<Run[]> {
  const given = base === undefined ? [...dirs] : [base, ...dirs]
  if (given.length === 0)
    throw new RapoError('ERR_RAPO_INVALID_ARGUMENT', 'a report needs at least one run directory')
  for (const dir of given) {
    const found = statOf(dir)
    if (!found) throw new RapoError('ERR_RAPO_IO', `there is no run directory ${withPlace(dir)}`)
    if (!found.isDirectory()) throw new RapoError('ERR_RAPO_IO', `${dir} is a file, not a run directory`)
  }
  const places = new Set<string>()
  const unique = given.filter(dir => {
    const place = realpathSync(dir)
    return !places.has(place) && places.add(place)
  })
  const runs: Omit<Run, 'isBase'>[] = []
  for (const dir of unique) runs.push(await loadRun(dir))
  const untrained = runs.filter(run => !run.metrics)
  const baseRun = base !== undefined ? runs[0] : untrained.length === 1 ? untrained[0] : undefined
  return withDistinctNames(
    runs
      .map(run => ({ ...run, isBase: run === baseRun }))
      .sort((a, b) => Number(b.isBase) - Number(a.isBase)),
  )
}

async function loadRun(dir: string): Promise<Omit<Run, 'isBase'>> {
  const files = ['config.yaml', 'metrics.jsonl', 'eval.json'].map(name => path.join(dir, name))
  const [configFile, metricsFile, evalFile] = files as [string, string, string]
  if (!files.some(file => existsSync(file))) {
    throw new RapoError(
      'ERR_RAPO_IO',
      `${dir} is no run directory: it has no config.yaml, metrics.jsonl or eval.json`,
    )
  }
  const config = existsSync(configFile) ? readConfig(configFile) : undefined
  const evaluation = existsSync(evalFile) ? readEvaluation(evalFile) : undefined
  const samplesFile = path.join(dir, 'samples.jsonl')
  const evalSamplesFile = path.join(dir, 'eval-samples.jsonl')
  const evalsFile = path.join(dir, 'evals.jsonl')
  const evalStagesFile = path.join(dir, 'evals-samples.jsonl')
  const configName = config?.value.name
  return {
    name:
      evaluation?.name ?? (typeof configName === 'string' ? configName : path.basename(path.resolve(dir))),
    dir,
    ...(config && { config }),
    ...(evaluation && { evaluation }),
    ...(existsSync(metricsFile) && { metrics: await readMetrics(metricsFile) }),
    ...(existsSync(samplesFile) && { samples: await readSamples(samplesFile) }),
    ...(existsSync(evalsFile) && { evals: await readEvals(evalsFile) }),
    ...(existsSync(evalStagesFile) && { evalStages: await readSamples(evalStagesFile) }),
    ...(existsSync(evalSamplesFile) && { evalSamples: await readEvalSamples(evalSamplesFile) }),
  }
}

/** Runs with the same name get the part of their path that differs. */
export function withDistinctNames(runs: readonly Run[]): Run[] {
  return runs.map(run => {
    const twins = runs.filter(other => other.name === run.name)
    if (twins.length === 1) return run
    const paths = twins.map(twin => path.resolve(twin.dir).split(path.sep).reverse())
    const own = path.resolve(run.dir).split(path.sep).reverse()
    const end = own.findIndex((part, i) => paths.some(parts => parts[i] !== part))
    let start = end + 1
    while (new Set(paths.map(parts => parts.slice(end, start).join('/'))).size < paths.length) start++
    return { ...run, name: `${run.name} (${own.slice(end, start).reverse().join('/')})` }
  })
}

function readConfig(file: string) {
  const text = readFileSync(file, 'utf8')
  let value: unknown
  try {
    value = parseYaml(text, { logLevel: 'error' })
  } catch (cause) {
    throw new RapoError('ERR_RAPO_FORMAT', `${file}: ${(cause as Error).message}`, { cause })
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new RapoError('ERR_RAPO_FORMAT', `${file}: a configuration must be a mapping`)
  }
  return { text, value: value as Record<string, unknown> }
}

function readEvaluation(file: string): Evaluation {
  let value: unknown
  try {
    value = JSON.parse(readFileSync(file, 'utf8'))
  } catch (cause) {
    throw new RapoError('ERR_RAPO_FORMAT', `${file}: ${(cause as Error).message}`, { cause })
  }
  return checked(evaluationSchema, value, file)
}

async function readMetrics(file: string): Promise<StepMetrics[]> {
  const steps: StepMetrics[] = []
  for await (const { place, value } of jsonLines(file)) {
    const line = checked(metricsSchema, value, place)
    // A run that was resumed from a checkpoint repeats later steps: the last line of a step counts.
    while (steps.length > 0 && steps.at(-1)!.step >= line.step) steps.pop()
    steps.push(line)
  }
  return steps
}

/** pass@1, and pass@k and maj@k at the largest k, of each evaluation during training. */
async function readEvals(file: string): Promise<StepMetrics[]> {
  const evals: StepMetrics[] = []
  for await (const { place, value } of jsonLines(file)) {
    const { step, k, groups } = checked(evalLineSchema, value, place)
    const { passAtK, majority } = groups.all
    while (evals.length > 0 && evals.at(-1)!.step >= step) evals.pop()
    const last = k.length - 1
    evals.push({
      step,
      'pass@1': passAtK[0],
      ...(last > 0 && { [`pass@${k[last]}`]: passAtK[last] }),
      ...(last > 0 && majority && { [`maj@${k[last]}`]: majority.majAtK[last] }),
    })
  }
  return evals
}

async function readSamples(file: string): Promise<Stage[]> {
  const samples: (Sample & { step: number })[] = []
  for await (const { place, value } of jsonLines(file)) {
    const sample = checked(sampleSchema, value, place)
    const { step } = sample
    if (step === undefined) throw new RapoError('ERR_RAPO_FORMAT', `${place}: step is missing`)
    // As with the metrics, a resumed run repeats steps. Here a step has several lines.
    if (samples.length > 0 && step < samples.at(-1)!.step) {
      while (samples.length > 0 && samples.at(-1)!.step >= step) samples.pop()
    }
    samples.push({ ...sample, step })
  }
  const steps = [...new Set(samples.map(({ step }) => step))]
  const size = Math.ceil(steps.length / STAGES)
  return Array.from({ length: Math.ceil(steps.length / size || 0) }, (_, i) => {
    const [firstStep, lastStep] = [steps[i * size]!, steps[Math.min((i + 1) * size, steps.length) - 1]!]
    const own = samples.filter(({ step }) => step >= firstStep && step <= lastStep)
    return { firstStep, lastStep, samples: rightAndWrong(own, KEPT_OF_STAGE) }
  })
}

/** `count` right completions, then `count` wrong ones, each spread evenly over the list. */
function rightAndWrong(samples: readonly Sample[], count: number): Sample[] {
  return [samples.filter(isRight), samples.filter(sample => !isRight(sample))].flatMap(kept =>
    spread(kept, count),
  )
}

/** Right and wrong completions, of different problems as far as possible. */
async function readEvalSamples(file: string): Promise<Sample[]> {
  const first = new Map<string, Sample>()
  for await (const { place, value } of jsonLines(file)) {
    const sample = checked(sampleSchema, value, place)
    const key = `${isRight(sample)} ${sample.problemId}`
    if (!first.has(key)) first.set(key, sample)
  }
  return rightAndWrong([...first.values()], KEPT_OF_EVALUATION)
}

/** At most `count` of the items, evenly spaced, with the first and the last one. */
function spread<T>(items: readonly T[], count: number): T[] {
  if (items.length <= count) return [...items]
  return Array.from({ length: count }, (_, i) => items[Math.round((i * (items.length - 1)) / (count - 1))]!)
}

function checked<T>(schema: z.ZodType<T>, value: unknown, place: string): T {
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const { path: field, message } = result.error.issues[0]!
  throw new RapoError(
    'ERR_RAPO_FORMAT',
    `${place}: ${field.length > 0 ? `${field.join('.')}: ` : ''}${message}`,
  )
}

/**
 * The objects of a JSON Lines file, as a stream, since evaluations hold millions of samples. If the last line has no newline
 * and cannot be parsed, a killed process left it, and it is skipped. Any other broken line is an error.
 */
async function* jsonLines(file: string): AsyncGenerator<{ place: string; value: unknown }> {
  let number = 0
  for await (const { line, isWhole } of lines(file)) {
    number++
    if (line.trim() === '') continue
    const place = `${file}:${number}`
    let value: unknown
    try {
      value = JSON.parse(line)
    } catch (cause) {
      if (!isWhole) return
      throw new RapoError('ERR_RAPO_FORMAT', `${place}: ${(cause as Error).message}`, { cause })
    }
    yield { place, value }
  }
}

/** node:readline is not used: it also breaks lines at U+2028 and U+2029, which JSON may contain unescaped. */
async function* lines(file: string): AsyncGenerator<{ line: string; isWhole: boolean }> {
  let rest = ''
  for await (const chunk of createReadStream(file, 'utf8')) {
    const parts = (rest + chunk).split('\n')
    rest = parts.pop()!
    for (const line of parts) yield { line, isWhole: true }
  }
  if (rest !== '') yield { line: rest, isWhole: false }
}
