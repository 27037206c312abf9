/** eval-progress.jsonl: what an interrupted evaluation has sampled already, and under which conditions. */
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

/** A line of eval-progress.jsonl, after the first. */
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
 * eval-progress.jsonl: its first line is what the samples depend on, each other one a call's result. Goes on with what
 * is there already; throws ERR_RAPO_CONFIG where that was measured otherwise. Every rank knows all lines; rank 0 writes.
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
    // An older version of rapo has not recorded all of them.
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
    // Without a last line that a killed process left half-written.
    if (isWriter) writeWhole(file, toJsonLines([conditions, ...lines]))
  })
  return {
    has: (id: string, call: number) => done.has(keyOf(id, call)),
    add(line: ProgressLine) {
      if (isWriter) appendJsonLines(file, [line])
      done.set(keyOf(line.problemId, line.call), line)
    },
    /** Over the calls of one problem, or of all. */
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

/** The whole lines; a file that is not there has none. */
function readProgress(file: string): Record<string, unknown>[] {
  if (!existsSync(file)) return []
  const content = readInput(file)
  const whole = content.subarray(0, content.lastIndexOf(0x0a) + 1)
  return parseJsonLines(whole, file).map(({ value }) => ({ ...value }))
}

/** All that the samples depend on, by the names that people know. */
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
    // A verifier of the user's may read them.
    ...(existsSync(module) && {
      columns: digest(prompts.map(({ problem }) => problem.columns ?? {})),
    }),
  }
}

/** Samples of a problem in calls of at most `size`. */
export function listCalls(n: number, size: number) {
  return Array.from({ length: Math.ceil(n / size) }, (_, index) => {
    const first = index * size
    return { index, first, count: Math.min(size, n - first) }
  })
}
