/** pass@k of a model on a problem file, with intervals, split by difficulty. */
import path from 'node:path'
import { watched } from '../base/call.js'
import { RapoError } from '../base/errors.js'
import { asIoError, makeDirectories, writeWhole } from '../base/files.js'
import { readInput } from '../base/jsonl.js'
import { noLock } from '../base/lock.js'
import { deriveSeed } from '../base/random.js'
import { listKs } from '../base/stats.js'
import { plural } from '../base/text.js'
import { anySignal, told, waitFor } from '../base/wait.js'
import type { Config } from '../config/config.js'
import { requireField } from '../config/config.js'
import { type Problem, readProblems } from '../data/problems.js'
import { fitContext, fitModel, templateFor } from '../data/prompts.js'
import { nameOf } from '../data/rows.js'
import { splitEvenly } from '../model/batch.js'
import { checkModel } from '../model/directory.js'
import { openPolicy } from '../model/engine.js'
import type { HubOptions } from '../model/hub.js'
import type { LoadPolicy, Policy } from '../model/policy.js'
import { stopTokenIdsFor } from '../model/template.js'
import { checkTokenizerFits, loadTokenizer } from '../model/tokenizer.js'
import { loadVerifier } from '../reward/load.js'
import { localEngine } from '../rollout/engine.js'
import { rolloutGroups, type ScoredRollout, samplingParams, score } from '../rollout/rollout.js'
import { lockRun } from '../train/run.js'
import { ownPart } from '../train/share.js'
import { type Joined, joinWorld, leaveWorld } from '../world/join.js'
import { type EvalResult, type ProblemResult, summarizeEval } from './groups.js'
import { listCalls, openProgress, type ProgressLine } from './journal.js'

/** Options of evaluate: the model to measure, and where the results go. */
export interface EvaluateOptions {
  /** Directory of the model to measure. */
  readonly dir: string
  /** The model's name in eval.json: the run or directory as the user named it. */
  readonly model: string
  /** The model's label in tables and reports. */
  readonly name: string
  /** Directory for eval.json and eval-samples.jsonl. It is made if it is missing. */
  readonly output: string
  /**
   * Called with the completions done, their total, and the problems solved: before the first is sampled, and a few times a
   * second, when `done` is estimated from the tokens. What it throws ends the measurement, after the call that is running.
   */
  readonly onProgress?: (done: number, total: number, solved: number) => void
  /** Called with the rows that config.data.dropUnusable leaves out. */
  readonly onUnusable?: (rows: readonly string[]) => void
  /** Told, in a text for people, what is being loaded. */
  readonly onNotice?: (text: string) => void
  /** Called with the number of bytes so far while data is fetched from the hub. */
  readonly onDownload?: HubOptions['onProgress']
  /** Discards the samples of an interrupted evaluation in `output`. Otherwise the evaluation continues from them. */
  readonly restart?: boolean
  /** Loads the model. Default: the engine's loadPolicy. */
  readonly loadPolicy?: LoadPolicy
  /** Aborting the signal stops between tokens, and the call rejects with its reason. Finished calls are kept. */
  readonly signal?: AbortSignal
}

/**
 * Samples config.eval.samples completions of each problem in config.data.eval and writes eval.json and eval-samples.jsonl. A
 * problem's samples depend on the seed, its id and config.eval.samplesPerCall, not on the other problems. Finished samples
 * are kept in eval-progress.jsonl: the same call after a kill continues from them, to the same result. Only one evaluation
 * at a time may write to an output directory. If a launcher started several processes, each process samples a part of the
 * problems, rank 0 writes, and the result is the same as with one process. Throws RapoError.
 */
export async function evaluate(config: Config, options: EvaluateOptions): Promise<EvalResult> {
  requireField('data.eval', config.data.eval, 'the problem file to measure')
  const joined = await joinWorld(config, options.signal)
  const { world } = joined
  try {
    const inputs = await world.together('reading the inputs', () => readInputs(config, options))
    const result = await measure(config, options, joined, inputs)
    await world.close()
    return result
  } catch (error) {
    // What went wrong first counts.
    await leaveWorld(world, error).catch(() => {})
    throw error
  }
}

async function readInputs(config: Config, options: EvaluateOptions) {
  const { sampling } = config
  const { onUnusable, onDownload } = options
  const hooks = { ...(onUnusable && { onUnusable }), ...(onDownload && { onDownload }) }
  const data = { ...config.data, ...hooks, field: 'data.eval', signal: options.signal }
  const verifier = await loadVerifier(config.task.verifier, config.task)
  const never = () =>
    new RapoError('ERR_RAPO_INTERNAL', `${nameOf(data.eval)} is never read: a promise cannot settle`)
  const reading = readProblems(data.eval, verifier, data)
  const problems = await waitFor(reading, { signal: options.signal, fault: never })
  if (!options.loadPolicy) checkModel(options.dir)
  const tokenizer = loadTokenizer(options.dir)
  const template = templateFor(problems, data, options.dir)
  const stopTokenIds = stopTokenIdsFor(options.dir, tokenizer, template)
  const encode = { tokenizer, template, maxNewTokens: sampling.maxNewTokens }
  const fitting = fitContext(problems, options.dir, encode, data)
  const hard = readHardProblems(
    config,
    fitting.map(({ problem }) => problem),
  )
  return { data, verifier, tokenizer, stopTokenIds, fitting, hard }
}

async function measure(
  config: Config,
  options: EvaluateOptions,
  { world, device, threads }: Joined,
  { data, verifier, tokenizer, stopTokenIds, fitting, hard }: Awaited<ReturnType<typeof readInputs>>,
): Promise<EvalResult> {
  const { sampling } = config
  const { maxNewTokens, temperature } = sampling
  const { samples: n, bootstrap, seed } = config.eval
  const isWriter = world.rank === 0
  const lock = await world.together('taking the output directory', async () => {
    if (!isWriter) return noLock
    makeDir(options.output)
    return lockRun(options.output, 'eval')
  })
  const signal = anySignal(lock.lost, options.signal)

  const inference = { dtype: config.model.dtype, device, trainable: false }
  let policy: Policy | undefined
  try {
    const loaded = await world.together('loading the model', async () => {
      signal.throwIfAborted()
      policy = await openPolicy(options.dir, inference, threads, options)
      checkTokenizerFits(tokenizer, policy.info, options.dir)
      const prompts = fitModel(fitting, { maxNewTokens, info: policy.info }, data)
      const engine = localEngine(policy)
      await engine.syncWeights(0, { signal })
      lock.check()
      return { policy, prompts, engine }
    })
    const { prompts, engine } = loaded
    const progress = await openProgress(config, options, prompts, world)

    const perProblem: ProblemResult[] = []
    const report = (running = 0) => {
      const solved = perProblem.filter(({ correct }) => correct > 0).length
      return options.onProgress?.(progress.sum(undefined, 'n') + running, n * prompts.length, solved)
    }
    await world.together('starting', () => told(report(), signal))
    const { samplesPerCall } = config.eval
    const atOnce = Math.max(1, Math.floor(samplesPerCall / n)) * world.size
    for (let first = 0; first < prompts.length; first += atOnce) {
      const some = prompts.slice(first, first + atOnce)
      for (const call of listCalls(n, samplesPerCall)) {
        const missing = some.filter(({ problem }) => !progress.has(problem.id, call.index))
        if (missing.length === 0) continue
        const start = performance.now()
        const { part } = ownPart(missing, world)
        const sampled = part.length * call.count
        // The last completion counts when it is judged. An error of onProgress is thrown after the call has ended.
        const reporting = watched('onProgress', (tokens: number, most: number) =>
          report(world.size * Math.floor(((sampled - 1) * tokens) / Math.max(1, most))),
        )
        const callOptions = { signal, onProgress: reporting.call }
        const all = await world.gather(`problems from number ${first + 1}`, async () => {
          signal.throwIfAborted()
          if (part.length === 0) return []
          // Each problem has its own random stream, so that its samples do not depend on the other problems.
          const seeds = part.map(({ problem }) =>
            deriveSeed(seed, 'eval', problem.id, ...(call.index > 0 ? [call.index] : [])),
          )
          const params = samplingParams(sampling, { n: call.count, stopTokenIds, seed: seeds })
          const rollouts = await rolloutGroups(engine, tokenizer, part, params, callOptions)
          const scored = await score(rollouts, verifier, { ...config.task, maxNewTokens, signal })
          return splitEvenly(scored, part.length).map(group => lineOf(group, call, config))
        })
        lock.check()
        const seconds = (performance.now() - start) / 1000 / missing.length
        for (const line of all.flat()) progress.add({ ...line, seconds })
        await world.together('reporting', () => reporting.failed.throwIfAborted())
      }
      for (const { problem } of some) {
        const correct = progress.sum(problem.id, 'correct')
        const hardForBase = hard && { hardForBase: hard.has(problem.id) }
        perProblem.push({ id: problem.id, ...difficultyOf(problem), ...hardForBase, n, correct })
      }
      await world.together('reporting', () => told(report(), signal))
    }

    const ks = listKs(n, config.eval.largestK)
    const result: EvalResult = {
      model: options.model,
      name: options.name,
      problems: nameOf(data.eval),
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
    await world.together('writing the result', () => {
      lock.check()
      if (!isWriter) return
      writeWhole(path.join(options.output, 'eval-samples.jsonl'), progress.samples())
      writeWhole(path.join(options.output, 'eval.json'), `${JSON.stringify(result, null, 2)}\n`)
      progress.remove()
    })
    await loaded.policy.dispose()
    await lock.release()
    return result
  } catch (error) {
    // The first error is the one to report.
    await policy?.dispose().catch(() => {})
    await lock.release().catch(() => {})
    throw error
  }
}

/** The line of a problem's call in eval-progress.jsonl, without the seconds. */
function lineOf(
  group: readonly ScoredRollout[],
  { index, first, count }: ReturnType<typeof listCalls>[number],
  config: Config,
): Omit<ProgressLine, 'seconds'> {
  const { problem } = group[0]!
  const kept = group.slice(0, Math.max(0, config.eval.keepSamples - first))
  return {
    problemId: problem.id,
    call: index,
    n: count,
    correct: group.filter(rollout => rollout.reward >= 1).length,
    tokens: group.reduce((sum, rollout) => sum + rollout.completionIds.length, 0),
    samples: kept.map(({ completion, reward, reason, finishReason }) => ({
      ...{ problemId: problem.id, prompt: problem.prompt, completion, reward, reason, finishReason },
    })),
  }
}

/** The ids of the problems that the model of config.eval.base never solved, or solved less often than hardBelow. */
function readHardProblems(
  { eval: { base, hardBelow } }: Config,
  problems: readonly Problem[],
): Set<string> | undefined {
  if (base === '') return undefined
  const fault = (why: string) => new RapoError('ERR_RAPO_DATA', `eval.base: ${base} ${why}`)
  let perProblem: readonly ProblemResult[] | undefined
  try {
    perProblem = (
      JSON.parse(new TextDecoder().decode(readInput(base, 'eval.base'))) as Partial<EvalResult> | null
    )?.perProblem
  } catch (error) {
    if (error instanceof RapoError) throw error
    throw fault(`is not JSON: ${(error as Error).message}`)
  }
  if (!Array.isArray(perProblem)) throw fault('is no eval.json: it has no perProblem')
  const measured = new Map(perProblem.map(result => [String(result.id), result]))
  const missing = problems.filter(({ id }) => !measured.has(id))
  if (missing.length > 0) {
    throw fault(
      `has no result for ${missing.length} of ${plural(problems.length, 'problem')}, such as "${missing[0]!.id}"`,
    )
  }
  const isHard = ({ correct, n }: ProblemResult) => correct === 0 || correct / n < hardBelow
  return new Set(problems.filter(({ id }) => isHard(measured.get(id)!)).map(({ id }) => id))
}

function difficultyOf({ difficulty }: Problem) {
  return difficulty === undefined ? {} : { difficulty }
}

function makeDir(dir: string): void {
  try {
    makeDirectories(dir)
  } catch (error) {
    throw asIoError(`cannot make the directory ${dir}`, error)
  }
}
