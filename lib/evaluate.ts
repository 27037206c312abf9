/** pass@k of a model on a problem file, with intervals, split by difficulty. */
import { mkdirSync } from 'node:fs'
import path from 'node:path'
import type { Config } from './config.js'
import { type Problem, readProblems } from './data.js'
import { RapoError } from './errors.js'
import { openPolicy, requireField } from './open.js'
import type { LoadPolicy } from './policy.js'
import { checkTokenizerFits, createTemplate, encodePrompt, loadTokenizer, stopTokenIdsFor } from './prompt.js'
import { createRandom, deriveSeed } from './random.js'
import { loadVerifier } from './reward/verifier.js'
import { rolloutGroups, samplingParams, score } from './rollout.js'
import { asIoError, writeWhole } from './run.js'

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

/** 1, 2, 4, … up to n / 2: beyond that the estimate rests on too few distinct subsets. */
export function listKs(n: number): number[] {
  const ks: number[] = []
  for (let k = 1; k <= n / 2; k *= 2) ks.push(k)
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

/** What `eval.json` says about all problems, or those of one difficulty. */
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
  /** "all", and one per difficulty. */
  readonly groups: Readonly<Record<string, EvalGroup>>
  readonly perProblem: readonly ProblemResult[]
  readonly seconds: number
  readonly tokens: number
}

/** pass@k of all problems and of each difficulty, from how many samples of each were correct. */
export function summarizeEval(
  results: readonly ProblemResult[],
  ks: readonly number[],
  resamples: number,
  seed: number,
): Record<string, EvalGroup> {
  const difficulties = [...new Set(results.flatMap(result => result.difficulty ?? []))].sort()
  const groups: Record<string, EvalGroup> = {}
  for (const name of ['all', ...difficulties]) {
    const members = results.filter(result => name === 'all' || result.difficulty === name)
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
  /** Called after each problem. */
  readonly onProblem?: (done: number, total: number, result: ProblemResult) => void
  /** Default: the engine's. */
  readonly loadPolicy?: LoadPolicy
}

/**
 * config.eval.samples completions of each problem in config.data.eval; writes eval.json and eval-samples.jsonl. A
 * problem's samples depend on the seed and its id alone, not on the other problems. Throws RapoError.
 */
export async function evaluate(config: Config, options: EvaluateOptions): Promise<EvalResult> {
  const { sampling, data } = config
  const { samples: n, keepSamples, bootstrap, seed } = config.eval
  requireField('data.eval', data.eval, 'the problem file to measure')
  const verifier = await loadVerifier(config.task.verifier)
  const problems = readProblems(data.eval, verifier)
  const tokenizer = loadTokenizer(options.dir)
  const template = createTemplate(data.template, options.dir)
  const stopTokenIds = stopTokenIdsFor(options.dir, tokenizer, template)
  makeDir(options.output)

  const { dtype, device } = config.model
  const inference = { dtype, device, trainable: false }
  const policy = await openPolicy(options.dir, inference, config.run.threads, options.loadPolicy)
  try {
    checkTokenizerFits(tokenizer, policy.info, options.dir)
    const { maxNewTokens, temperature } = sampling
    const context = { tokenizer, template, info: policy.info, maxNewTokens }
    const prompts = problems.map(problem => encodePrompt(problem, context))

    const start = performance.now()
    const perProblem: ProblemResult[] = []
    const kept: object[] = []
    let tokens = 0
    for (const prompt of prompts) {
      const { problem } = prompt
      // One problem a call: its random stream is its own, whatever else is measured.
      const params = samplingParams(sampling, { n, stopTokenIds, seed: deriveSeed(seed, 'eval', problem.id) })
      const scored = await score(await rolloutGroups(policy, tokenizer, [prompt], params), verifier)
      for (const rollout of scored) tokens += rollout.completionIds.length
      for (const { completion, reward, reason, finishReason } of scored.slice(0, keepSamples)) {
        kept.push({ problemId: problem.id, prompt: problem.prompt, completion, reward, reason, finishReason })
      }
      const correct = scored.filter(rollout => rollout.reward >= 1).length
      const result = { id: problem.id, ...difficultyOf(problem), n, correct }
      perProblem.push(result)
      options.onProblem?.(perProblem.length, prompts.length, result)
    }

    const ks = listKs(n)
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
      seconds: (performance.now() - start) / 1000,
      tokens,
    }
    writeWhole(
      path.join(options.output, 'eval-samples.jsonl'),
      kept.map(line => `${JSON.stringify(line)}\n`).join(''),
    )
    writeWhole(path.join(options.output, 'eval.json'), `${JSON.stringify(result, null, 2)}\n`)
    return result
  } finally {
    await policy.dispose()
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
