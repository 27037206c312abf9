/** eval-progress.jsonl: the samples of an interrupted evaluation, and the conditions under which they were sampled. */
import { existsSync, readdirSync, rmSync, statSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { writeWhole } from '../base/files.js'
import { appendJsonLines, parseJsonLines, readInput, toJsonLines } from '../base/jsonl.js'
import { digest } from '../base/random.js'
import type { Config } from '../config/config.js'
import { evalTemperature } from '../config/eval.js'
import type { EncodedPrompt } from '../data/prompts.js'
import { parseModuleName } from '../reward/load.js'

/** Each line of eval-progress.jsonl after the first. */
export interface ProgressLine {
  readonly problemId: string
  readonly call: number
  readonly n: number
  readonly correct: number
  readonly tokens: number
  readonly seconds: number
  /** Number of wrong completions with each answer. Absent where the verifier gives none. */
  readonly answers?: Readonly<Record<string, number>>
  readonly samples: readonly object[]
}

/** The results of a measurement's calls. */
export interface Journal {
  has(id: string, call: number): boolean
  add(line: ProgressLine): void
  /** Over the calls of one problem, or of all. */
  sum(id: string | undefined, field: 'n' | 'correct' | 'tokens' | 'seconds'): number
  /** ProblemResult.wrongVotes of a problem. */
  wrongVotes(id: string): number[] | undefined
  /** The kept samples of these problems, in their order. */
  samples(prompts: readonly EncodedPrompt[]): Iterable<object>
}

/** A journal of these lines; `written` is told of each further one. */
export function createJournal(
  lines: readonly ProgressLine[] = [],
  written: (line: ProgressLine) => void = () => {},
): Journal {
  const done = new Map<string, ProgressLine[]>()
  const of = (id: string) => done.get(id) ?? []
  const keep = (line: ProgressLine) => done.set(line.problemId, [...of(line.problemId), line])
  for (const line of lines) keep(line)
  return {
    has: (id, call) => of(id).some(line => line.call === call),
    add(line) {
      written(line)
      keep(line)
    },
    sum: (id, field) =>
      (id === undefined ? [...done.values()].flat() : of(id)).reduce((sum, line) => sum + line[field], 0),
    wrongVotes(id) {
      const votes = new Map<string, number>()
      for (const { answers } of of(id)) {
        if (!answers) return undefined
        for (const [answer, count] of Object.entries(answers))
          votes.set(answer, (votes.get(answer) ?? 0) + count)
      }
      return [...votes.values()].sort((a, b) => b - a)
    },
    *samples(prompts) {
      for (const { problem } of prompts) {
        const calls = [...of(problem.id)].sort((a, b) => a.call - b.call)
        for (const { samples } of calls) yield* samples
      }
    },
  }
}

/**
 * Opens eval-progress.jsonl. Its first line holds the conditions on which the samples depend; each other line is the result
 * of one call. Continues an existing file, and throws ERR_RAPO_CONFIG if that file has other conditions.
 */
export function openProgress(
  config: Config,
  options: {
    readonly dirs: readonly string[]
    readonly output: string
    readonly restart?: boolean | undefined
  },
  prompts: readonly EncodedPrompt[],
) {
  const file = path.join(options.output, 'eval-progress.jsonl')
  const conditions = describeConditions(config, options.dirs, prompts)
  if (options.restart) rmSync(file, { force: true })
  const [first, ...lines] = readProgress(file)
  if (first !== undefined) {
    // Older versions of rapo recorded fewer conditions.
    const differing = Object.keys(first).find(key => conditions[key] !== first[key])
    if (differing !== undefined) {
      throw new RapoError(
        'ERR_RAPO_CONFIG',
        `${file} holds an interrupted measurement with ${differing} ${JSON.stringify(first[differing])}, not ${JSON.stringify(conditions[differing])}: choose another --output, or discard it with --restart`,
      )
    }
  }
  // A last line that a killed process left incomplete is dropped.
  writeWhole(file, toJsonLines([conditions, ...lines]))
  const known = lines as unknown as ProgressLine[]
  const journal = createJournal(known, line => appendJsonLines(file, [line]))
  return { ...journal, lines: known, remove: () => rmSync(file, { force: true }) }
}

/** The complete lines; a missing file has none. */
function readProgress(file: string): Record<string, unknown>[] {
  if (!existsSync(file)) return []
  const content = readInput(file)
  const whole = content.subarray(0, content.lastIndexOf(0x0a) + 1)
  return parseJsonLines(whole, file).map(({ value }) => ({ ...value }))
}

/** Everything on which the samples depend, by the names that users know. */
function describeConditions(
  { sampling, task, data, eval: evaluation, model, rollouts }: Config,
  dirs: readonly string[],
  prompts: readonly EncodedPrompt[],
): Record<string, unknown> {
  const { topP, topK, minP, maxNewTokens } = sampling
  const { verifier = '', environment = '' } = task
  const [module, environmentModule] = [verifier, environment].map(name => parseModuleName(name).file) as [
    string,
    string,
  ]
  const isModule = [module, environmentModule].some(file => existsSync(file))
  const weights = dirs.flatMap(dir =>
    readdirSync(dir)
      .filter(name => /\.(?:safetensors|json)$/.test(name))
      .map(name => [name, statSync(path.join(dir, name)).size, statSync(path.join(dir, name)).mtimeMs]),
  )
  return {
    'eval.samples': evaluation.samples,
    'eval.samplesPerCall': evaluation.samplesPerCall,
    'eval.keepSamples': evaluation.keepSamples,
    'eval.seed': evaluation.seed,
    ...{
      'sampling.temperature': evalTemperature({ eval: evaluation, sampling }),
      'sampling.topP': topP,
      'sampling.topK': topK,
      'sampling.minP': minP,
    },
    'sampling.maxNewTokens': maxNewTokens,
    'rollouts.engine': rollouts.engine,
    'task.verifier': task.verifier,
    ...(existsSync(module) && {
      'verifier module': digest(Buffer.from(readInput(module)).toString('base64')),
    }),
    ...(environment !== '' && {
      ...{ 'task.environment': environment, 'task.maxTurns': task.maxTurns },
      ...(task.maxTurnTokens !== undefined && { 'task.maxTurnTokens': task.maxTurnTokens }),
      ...(existsSync(environmentModule) && {
        'environment module': digest(Buffer.from(readInput(environmentModule)).toString('base64')),
      }),
    }),
    'data.template': data.template,
    ...{ 'model.dtype': model.dtype, 'model.device': model.device },
    'model files': digest(weights),
    problems: digest(prompts.map(({ problem: { columns: _, ...problem } }) => problem)),
    // The user's verifier or environment may read these columns.
    ...(isModule && {
      columns: digest(prompts.map(({ problem }) => problem.columns ?? {})),
    }),
  }
}

/** Splits the samples of a problem into calls of at most `size`. */
export function listCalls(n: number, size: number) {
  return Array.from({ length: Math.ceil(n / size) }, (_, index) => {
    const first = index * size
    return { index, first, count: Math.min(size, n - first) }
  })
}
