/** eval-progress.jsonl: the samples of an interrupted evaluation, and the conditions under which they were sampled. */
import { existsSync, readdirSync, rmSync, statSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { writeWhole } from '../base/files.js'
import { appendJsonLines, parseJsonLines, readInput, toJsonLines } from '../base/jsonl.js'
import { digest } from '../base/random.js'
import type { Config } from '../config/config.js'
import type { EncodedPrompt } from '../data/prompts.js'
import { parseModuleName } from '../reward/load.js'
import type { World } from '../world/world.js'

/** Each line of eval-progress.jsonl after the first. */
export interface ProgressLine {
  readonly problemId: string
  readonly call: number
  readonly n: number
  readonly correct: number
  readonly tokens: number
  readonly seconds: number
  readonly samples: readonly object[]
}

/**
 * Opens eval-progress.jsonl. Its first line holds the conditions on which the samples depend; each other line is the result
 * of one call. Continues an existing file, and throws ERR_RAPO_CONFIG if that file has other conditions. Every rank has all
 * lines; rank 0 reads and writes the file.
 */
export async function openProgress(
  config: Config,
  options: { readonly dir: string; readonly output: string; readonly restart?: boolean },
  prompts: readonly EncodedPrompt[],
  world: World,
) {
  const isWriter = world.rank === 0
  const file = path.join(options.output, 'eval-progress.jsonl')
  const conditions = describeConditions(config, options.dir, prompts)
  const done = new Map<string, ProgressLine>()
  const keyOf = (id: string, call: number) => JSON.stringify([id, call])
  const read = () => {
    if (!isWriter) return []
    if (options.restart) rmSync(file, { force: true })
    return readProgress(file)
  }
  const [all] = await world.gather('reading the journal', read)
  const [first, ...lines] = all!
  if (first !== undefined) {
    // Older versions of rapo recorded fewer conditions.
    const differing = Object.keys(first).find(key => conditions[key] !== first[key])
    if (differing !== undefined) {
      throw new RapoError(
        'ERR_RAPO_CONFIG',
        `${file} holds an interrupted measurement with ${differing} ${JSON.stringify(first[differing])}, not ${JSON.stringify(conditions[differing])}: choose another --output, or discard it with --restart`,
      )
    }
    for (const line of lines as unknown as ProgressLine[]) done.set(keyOf(line.problemId, line.call), line)
  }
  await world.together('opening the journal', () => {
    // A last line that a killed process left incomplete is dropped.
    if (isWriter) writeWhole(file, toJsonLines([conditions, ...lines]))
  })
  return {
    has: (id: string, call: number) => done.has(keyOf(id, call)),
    add(line: ProgressLine) {
      if (isWriter) appendJsonLines(file, [line])
      done.set(keyOf(line.problemId, line.call), line)
    },
    /** The sum over the calls of one problem, or of all problems. */
    sum: (id: string | undefined, field: 'n' | 'correct' | 'tokens' | 'seconds') =>
      [...done.values()].reduce(
        (sum, line) => sum + (id === undefined || line.problemId === id ? line[field] : 0),
        0,
      ),
    /** The kept samples in the order of the problems, as JSON Lines. */
    *samples() {
      const calls = listCalls(config.eval.samples, config.eval.samplesPerCall)
      for (const { problem } of prompts) {
        for (const { index } of calls) yield* toJsonLines(done.get(keyOf(problem.id, index))?.samples ?? [])
      }
    },
    remove: () => rmSync(file, { force: true }),
  }
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
  { sampling, task, data, eval: evaluation, model }: Config,
  dir: string,
  prompts: readonly EncodedPrompt[],
): Record<string, unknown> {
  const { temperature, topP, topK, minP, maxNewTokens } = sampling
  const { file: module } = parseModuleName(task.verifier)
  const weights = readdirSync(dir)
    .filter(name => /\.(?:safetensors|json)$/.test(name))
    .map(name => [name, statSync(path.join(dir, name)).size, statSync(path.join(dir, name)).mtimeMs])
  return {
    'eval.samples': evaluation.samples,
    'eval.samplesPerCall': evaluation.samplesPerCall,
    'eval.keepSamples': evaluation.keepSamples,
    'eval.seed': evaluation.seed,
    ...{
      'sampling.temperature': temperature,
      'sampling.topP': topP,
      'sampling.topK': topK,
      'sampling.minP': minP,
    },
    'sampling.maxNewTokens': maxNewTokens,
    'task.verifier': task.verifier,
    ...(existsSync(module) && {
      'verifier module': digest(Buffer.from(readInput(module)).toString('base64')),
    }),
    'data.template': data.template,
    ...{ 'model.dtype': model.dtype, 'model.device': model.device },
    'model files': digest(weights),
    problems: digest(prompts.map(({ problem: { columns: _, ...problem } }) => problem)),
    // The user's verifier may read these columns.
    ...(existsSync(module) && {
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
