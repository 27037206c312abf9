/** pass@k of a model on a problem file, with intervals, split by difficulty. */
import { existsSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { createRandom, deriveSeed } from '../base/random.js'
import type { Config } from '../config/config.js'
import { type Problem, parseJsonLines, readInput, readProblems } from '../data/problems.js'
import {
  checkTokenizerFits,
  createTemplate,
  type EncodedPrompt,
  fitContext,
  fitModel,
  loadTokenizer,
  stopTokenIdsFor,
} from '../data/prompts.js'
import type { Device, LoadPolicy, Policy } from '../model/engine.js'
import type { HubOptions } from '../model/hub.js'
import { loadVerifier } from '../reward/verifier.js'
import { rolloutGroups, samplingParams, score } from '../rollout/rollout.js'
import { digest } from '../setup/cache.js'
import { openPolicy, requireField } from '../train/open.js'
import { appendJsonLines, asIoError, lockRun, toJsonLines, writeWhole } from '../train/run.js'

/**
 * The unbiased estimate of the probability that at least one of k samples is correct, from c correct ones of n
 * (Chen et al. 2021): 1 − C(n−c, k) / C(n, k) = 1 − Π_{i=n−c+1..n} (1 − k/i). Exact to rounding for any n, k ≤ n.
 */
export function passAtK(n: number, c: number, k: number): number {
  if (!(k >= 1 && k <= n && c >= 0 && c <= n)) {
    throw new RapoError(
      'ERR_RAPO_INVALID_ARGUMENT',
      `passAtK(n=${n}, c=${c}, k=${k}) needs 1 ≤ k ≤ n, 0 ≤ c ≤ n`,
    )
  }
  if (n - c < k) return 1
  let logProduct = 0
  for (let i = n - c + 1; i <= n; i++) logProduct += Math.log1p(-k / i)
  return -Math.expm1(logProduct)
}

/** 1, 2, 4, … up to `largest`, or else to n / 2: beyond that the estimate rests on too few distinct subsets. */
export function listKs(n: number, largest = 0): number[] {
  const ks: number[] = []
  for (let k = 1; k <= Math.min(n, largest || n / 2); k *= 2) ks.push(k)
  return ks
}

/**
 * The mean of each column over the rows, and its 95 % bootstrap interval: percentiles of the means over rows drawn with
 * replacement. Same seed, same numbers.
 *
 * @param rows one a problem, one value a column
 */
export function bootstrapMeans(rows: readonly (readonly number[])[], resamples: number, seed: number) {
  const columns = rows[0]!.length
  const random = createRandom(seed)
  const meanOf = (chosen: readonly (readonly number[])[]) => {
    const sums = new Float64Array(columns)
    for (const row of chosen) for (let column = 0; column < columns; column++) sums[column]! += row[column]!
    return sums.map(sum => sum / chosen.length)
  }
  const draws = Array.from({ length: resamples }, () => meanOf(rows.map(() => random.pick(rows))))
  const low: number[] = []
  const high: number[] = []
  for (let column = 0; column < columns; column++) {
    const sorted = Float64Array.from(draws, draw => draw[column]!).sort()
    low.push(quantile(sorted, 0.025))
    high.push(quantile(sorted, 0.975))
  }
  return { mean: [...meanOf(rows)], low, high }
}

/** Between the two nearest of the sorted values, linearly. */
function quantile(sorted: Float64Array, q: number): number {
  const at = q * (sorted.length - 1)
  const below = Math.floor(at)
  const above = Math.min(below + 1, sorted.length - 1)
  return sorted[below]! + (sorted[above]! - sorted[below]!) * (at - below)
}

/** What `eval.json` says about all problems, those of one difficulty, or those that are hard for the base model. */
export interface EvalGroup {
  readonly problems: number
  /** One entry a k, as low and high. */
  readonly passAtK: readonly number[]
  readonly low: readonly number[]
  readonly high: readonly number[]
}

export interface ProblemResult {
  readonly id: string
  readonly difficulty?: string
  /** By config.eval.base and hardBelow. */
  readonly hardForBase?: boolean
  readonly n: number
  readonly correct: number
}

/** eval.json (docs/files.md). */
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
  /** "all", "hard for base" where a base is named, and one per difficulty. */
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

/** pass@k of all problems and of each group, from how many samples of each were correct. */
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

export interface EvaluateOptions {
  /** The model directory to measure. */
  readonly dir: string
  /** What eval.json calls it: the run or directory as the person named it. */
  readonly model: string
  /** Label in tables and reports. */
  readonly name: string
  /** Where eval.json and eval-samples.jsonl go; made where missing. */
  readonly output: string
  /** Completions there are, of all; before the first is sampled, and by the share of tokens while they are. solved: problems with a right one. */
  readonly onProgress?: (done: number, total: number, solved: number) => void
  /** Told of the rows that config.data.dropUnusable leaves out. */
  readonly onUnusable?: (rows: readonly string[]) => void
  /** Bytes of data that is fetched from the hub. */
  readonly onDownload?: HubOptions['onProgress']
  /** Discard what an interrupted measurement left in output, instead of going on with it. */
  readonly restart?: boolean
  /** Default: the engine's. */
  readonly loadPolicy?: LoadPolicy
}

/**
 * config.eval.samples completions of each problem in config.data.eval; writes eval.json and eval-samples.jsonl. A
 * problem's samples depend on the seed, its id and config.eval.samplesPerCall, not on the other problems. What is
 * sampled is kept in eval-progress.jsonl until the end: a measurement that was killed goes on there, to the same result.
 * One measurement at a time may write to an output directory. Throws RapoError.
 */
export async function evaluate(config: Config, options: EvaluateOptions): Promise<EvalResult> {
  const { sampling } = config
  const { samples: n, bootstrap, seed } = config.eval
  requireField('data.eval', config.data.eval, 'the problem file to measure')
  const { onUnusable, onDownload } = options
  const data = { ...config.data, ...(onUnusable && { onUnusable }), ...(onDownload && { onDownload }) }
  const verifier = await loadVerifier(config.task.verifier)
  const problems = await readProblems(data.eval, verifier, data)
  const tokenizer = loadTokenizer(options.dir)
  const template = createTemplate(data.template, options.dir)
  const stopTokenIds = stopTokenIdsFor(options.dir, tokenizer, template)
  const encode = { tokenizer, template, maxNewTokens: sampling.maxNewTokens }
  const fitting = fitContext(problems, options.dir, encode, data)
  const hard = readHardProblems(
    config,
    fitting.map(({ problem }) => problem),
  )
  makeDir(options.output)
  const unlock = lockRun(options.output, 'eval')

  const { dtype, device } = config.model
  const inference = { dtype, device: device as Device, trainable: false }
  let policy: Policy | undefined
  try {
    policy = await openPolicy(options.dir, inference, config.run.threads, options.loadPolicy)
    checkTokenizerFits(tokenizer, policy.info, options.dir)
    const { maxNewTokens, temperature } = sampling
    const prompts = fitModel(fitting, { maxNewTokens, info: policy.info }, data)
    const progress = openProgress(config, options, prompts)

    const perProblem: ProblemResult[] = []
    const report = (running = 0) => {
      const solved = perProblem.filter(({ correct }) => correct > 0).length
      options.onProgress?.(progress.sum(undefined, 'n') + running, n * prompts.length, solved)
    }
    report()
    const { samplesPerCall, keepSamples } = config.eval
    const together = Math.max(1, Math.floor(samplesPerCall / n))
    for (let first = 0; first < prompts.length; first += together) {
      const some = prompts.slice(first, first + together)
      for (const call of listCalls(n, samplesPerCall)) {
        const missing = some.filter(({ problem }) => !progress.has(problem.id, call.index))
        if (missing.length === 0) continue
        const start = performance.now()
        // Each problem's random stream is its own, whatever else is measured.
        const seeds = missing.map(({ problem }) =>
          deriveSeed(seed, 'eval', problem.id, ...(call.index > 0 ? [call.index] : [])),
        )
        const params = samplingParams(sampling, { n: call.count, stopTokenIds, seed: seeds })
        const sampled = missing.length * call.count
        const rollouts = await rolloutGroups(policy, tokenizer, missing, params, {
          // The last one counts when it is judged.
          onProgress: (tokens, most) => report(Math.floor(((sampled - 1) * tokens) / Math.max(1, most))),
        })
        const scored = await score(rollouts, verifier)
        const seconds = (performance.now() - start) / 1000 / missing.length
        for (const [i, { problem }] of missing.entries()) {
          const group = scored.slice(i * call.count, (i + 1) * call.count)
          const kept = group.slice(0, Math.max(0, keepSamples - call.first))
          progress.add({
            problemId: problem.id,
            call: call.index,
            n: call.count,
            correct: group.filter(rollout => rollout.reward >= 1).length,
            tokens: group.reduce((sum, rollout) => sum + rollout.completionIds.length, 0),
            seconds,
            samples: kept.map(({ completion, reward, reason, finishReason }) => ({
              ...{ problemId: problem.id, prompt: problem.prompt, completion, reward, reason, finishReason },
            })),
          })
        }
      }
      for (const { problem } of some) {
        const correct = progress.sum(problem.id, 'correct')
        const hardForBase = hard && { hardForBase: hard.has(problem.id) }
        perProblem.push({ id: problem.id, ...difficultyOf(problem), ...hardForBase, n, correct })
      }
      report()
    }

    const ks = listKs(n, config.eval.largestK)
    const result: EvalResult = {
      model: options.model,
      name: options.name,
      problems: data.eval,
      samplesPerProblem: n,
      temperature,
      topP: sampling.topP,
      topK: sampling.topK,
      minP: sampling.minP,
      seed,
      maxNewTokens,
      k: ks,
      groups: summarizeEval(perProblem, ks, bootstrap, seed),
      perProblem,
      seconds: progress.sum(undefined, 'seconds'),
      tokens: progress.sum(undefined, 'tokens'),
    }
    writeWhole(path.join(options.output, 'eval-samples.jsonl'), progress.samples())
    writeWhole(path.join(options.output, 'eval.json'), `${JSON.stringify(result, null, 2)}\n`)
    progress.remove()
    return result
  } finally {
    await policy?.dispose()
    unlock()
  }
}

/** The ids of the problems that config.eval.base solved never, or less often than hardBelow; undefined without a base. */
function readHardProblems(
  { eval: { base, hardBelow } }: Config,
  problems: readonly Problem[],
): Set<string> | undefined {
  if (base === '') return undefined
  const fault = (why: string) => new RapoError('ERR_RAPO_DATA', `eval.base: ${base} ${why}`)
  let perProblem: readonly ProblemResult[] | undefined
  try {
    perProblem = (JSON.parse(readInput(base).toString('utf8')) as Partial<EvalResult> | null)?.perProblem
  } catch (error) {
    if (error instanceof RapoError) throw error
    throw fault(`is not JSON: ${(error as Error).message}`)
  }
  if (!Array.isArray(perProblem)) throw fault('is no eval.json: it has no perProblem')
  const measured = new Map(perProblem.map(result => [String(result.id), result]))
  const missing = problems.filter(({ id }) => !measured.has(id))
  if (missing.length > 0) {
    throw fault(
      `has no result for ${missing.length} of ${problems.length} problems, such as "${missing[0]!.id}"`,
    )
  }
  const isHard = ({ correct, n }: ProblemResult) => correct === 0 || correct / n < hardBelow
  return new Set(problems.filter(({ id }) => isHard(measured.get(id)!)).map(({ id }) => id))
}

/** Samples of a problem in calls of at most `size`. */
function listCalls(n: number, size: number) {
  return Array.from({ length: Math.ceil(n / size) }, (_, index) => {
    const first = index * size
    return { index, first, count: Math.min(size, n - first) }
  })
}

/** A line of eval-progress.jsonl, after the first. */
interface ProgressLine {
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
 * is there already; throws ERR_RAPO_CONFIG where that was measured otherwise.
 */
function openProgress(config: Config, options: EvaluateOptions, prompts: readonly EncodedPrompt[]) {
  const file = path.join(options.output, 'eval-progress.jsonl')
  const conditions = describeConditions(config, options.dir, prompts)
  if (options.restart) rmSync(file, { force: true })
  const done = new Map<string, ProgressLine>()
  const keyOf = (id: string, call: number) => JSON.stringify([id, call])
  const [first, ...lines] = readProgress(file)
  if (first !== undefined) {
    const differing = Object.keys(conditions).find(key => conditions[key] !== first[key])
    if (differing !== undefined) {
      throw new RapoError(
        'ERR_RAPO_CONFIG',
        `${file} holds an interrupted measurement with ${differing} ${JSON.stringify(first[differing])}, not ${JSON.stringify(conditions[differing])}: choose another --output, or discard it with --restart`,
      )
    }
    for (const line of lines as unknown as ProgressLine[]) done.set(keyOf(line.problemId, line.call), line)
  }
  // Without a last line that a killed process left half-written.
  writeWhole(file, toJsonLines([conditions, ...lines]))
  return {
    has: (id: string, call: number) => done.has(keyOf(id, call)),
    add(line: ProgressLine) {
      appendJsonLines(file, [line])
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
  const whole = content.subarray(0, content.lastIndexOf('\n') + 1)
  return parseJsonLines(whole, file).map(({ value }) => ({ ...value }))
}

/** All that the samples depend on, by the names that people know. */
function describeConditions(
  { sampling, task, data, eval: evaluation, model }: Config,
  dir: string,
  prompts: readonly EncodedPrompt[],
): Record<string, unknown> {
  const { temperature, topP, topK, minP, maxNewTokens } = sampling
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
    'data.template': data.template,
    ...{ 'model.dtype': model.dtype, 'model.device': model.device },
    'model files': digest(weights),
    problems: digest(prompts.map(({ problem }) => problem)),
  }
}

/** pass@k of several results side by side, one table a group, as lines of text. */
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
    return [`${group} (${count} problems)`, header, ...rows].join('\n')
  })
  return tables.join('\n\n')
}

function difficultyOf({ difficulty }: Problem) {
  return difficulty === undefined ? {} : { difficulty }
}

function makeDir(dir: string): void {
  try {
    mkdirSync(dir, { recursive: true })
  } catch (error) {
    throw asIoError(`cannot make the directory ${dir}`, error)
  }
}
