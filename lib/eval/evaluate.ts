/** pass@k of a model on a problem file, with intervals, split by difficulty. */
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { makeDirectories, writeWhole } from '../base/files.js'
import { readInput, toJsonLines } from '../base/jsonl.js'
import { noLock } from '../base/lock.js'
import { digest } from '../base/random.js'
import { plural } from '../base/text.js'
import { anySignal, waitFor } from '../base/wait.js'
import type { Config } from '../config/config.js'
import { requireField } from '../config/config.js'
import { hubOptions } from '../data/fields.js'
import { type Problem, readProblems } from '../data/problems.js'
import { encodeProblems, fitModel } from '../data/prompts.js'
import { nameOf } from '../data/rows.js'
import { checkModel } from '../model/directory.js'
import { type OpenPolicyOptions, openPolicy } from '../model/engine.js'
import type { HubOptions } from '../model/hub.js'
import { locateModel } from '../model/locate.js'
import type { LoadPolicy, Policy } from '../model/policy.js'
import { checkTokenizerFits, loadTokenizer } from '../model/tokenizer.js'
import { loadEnvironment } from '../reward/environments.js'
import { loadJudge } from '../reward/rewards.js'
import type { RolloutEngine } from '../rollout/engine.js'
import { openEngine } from '../rollout/open.js'
import { knownText } from '../rollout/servers/checks.js'
import { describeFiles } from '../train/origin.js'
import { lockRun } from '../train/run.js'
import { checkAlone, type Joined, joinWorld, leaveWorld } from '../world/join.js'
import { compareRanks, settingsOf } from '../world/same.js'
import type { World } from '../world/world.js'
import type { EvalResult, ProblemResult } from './groups.js'
import { createJournal, openProgress } from './journal.js'
import { measure, summarize } from './measure.js'

/** Options of evaluate: the model to measure, and where the results go. */
export interface EvaluateOptions {
  /** Directory of the model to measure, or of an adapter of PEFT's, which names its model. */
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
  /** Told a few times a second how many bytes of the model's files have been read, of how many, and what is being read. */
  readonly onLoading?: OpenPolicyOptions['onLoading']
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
 * at a time may write to an output directory. If a launcher started several processes, each process measures its share as
 * one rank, and all return the same result. Throws RapoError.
 */
export async function evaluate(config: Config, options: EvaluateOptions): Promise<EvalResult> {
  const joined = await joinWorld(config, options.signal)
  const { world } = joined
  const { onUnusable, onNotice, onDownload, onProgress, ...silent } = options
  try {
    const result = await evaluateAsRank(joined, config, world.rank === 0 ? options : silent)
    await leaveWorld(world)
    return result
  } catch (error) {
    await leaveWorld(world, error).catch(() => {})
    throw error
  }
}

/** Rank 0 alone writes, and calls the hooks. */
async function evaluateAsRank(
  { world, device, threads }: Joined,
  config: Config,
  options: EvaluateOptions,
): Promise<EvalResult> {
  const inputs = await world.together('reading the problems', () => readInputs(config, options, world))
  const { data, environment, verifier, tokenizer, template, stopTokenIds, fitting, hard } = inputs
  const { modelDir, adapterDir } = inputs
  const isWriter = world.rank === 0
  const lock = await world.together('taking the directory', () => {
    if (!isWriter) return noLock
    makeDirectories(options.output)
    return lockRun(options.output, 'eval')
  })
  const signal = anySignal(lock.lost, options.signal)
  const { maxNewTokens } = config.sampling
  const adapter = adapterDir === undefined ? {} : { adapterDir }
  const inference = { dtype: config.model.dtype, device, trainable: false, ...adapter }
  let policy: Policy | undefined
  let engine: RolloutEngine | undefined
  try {
    const load = async () => {
      signal.throwIfAborted()
      policy = await openPolicy(modelDir, inference, threads, options)
      checkTokenizerFits(tokenizer, policy.info, modelDir)
      const prompts = fitModel(fitting, { maxNewTokens, info: policy.info }, data)
      // Log-probs do not count in a measurement: the canary is to find other weights alone.
      engine = openEngine(
        { ...config, run: options, sampling: { maxNewTokens, temperature: 1 } },
        {
          ...{ policy, modelDir, stopTokenIds, onNotice: options.onNotice },
          prompts: prompts.map(({ promptIds }) => promptIds),
          text: knownText(prompts[0]!.problem.prompt, tokenizer),
          // Servers read no adapters: they get a model in which the adapter is merged.
          fixedDir: adapterDir === undefined ? modelDir : undefined,
        },
      )
      await engine.syncWeights(0, { signal })
      return { prompts, engine }
    }
    const { prompts, ...loaded } = await world.together('loading the model', load)
    const dirs = adapterDir === undefined ? [modelDir] : [modelDir, adapterDir]
    await compareRanks(world, {
      'problems of data.eval': digest(prompts.map(({ problem }) => problem)),
      'files of the model': digest(dirs.map(dir => describeFiles(dir).digest)),
      configuration: digest(settingsOf(config)),
    })
    const progress = await world.together('opening the results', () => {
      lock.check()
      return isWriter ? openProgress(config, { ...options, dirs }, prompts) : undefined
    })
    const [lines] = await world.gather('earlier results', () => progress?.lines ?? [])
    const journal = progress ?? createJournal(lines)

    const measured = await measure(prompts, config, {
      ...{ ...loaded, world, tokenizer, template, environment, stopTokenIds, verifier, journal, signal },
      check: lock.check,
      onProgress: options.onProgress,
    })
    const perProblem = measured.map(result => ({
      ...result,
      ...(hard && { hardForBase: hard.has(result.id) }),
    }))

    const result: EvalResult = {
      ...{ model: options.model, name: options.name },
      ...summarize(config, perProblem, journal),
    }
    await world.together('writing the results', () => {
      lock.check()
      if (!isWriter) return
      writeWhole(path.join(options.output, 'eval-samples.jsonl'), toJsonLines(journal.samples(prompts)))
      writeWhole(path.join(options.output, 'eval.json'), `${JSON.stringify(result, null, 2)}\n`)
      progress?.remove()
    })
    await loaded.engine.close()
    await policy?.dispose()
    await lock.release()
    return result
  } catch (error) {
    // The first error is the one to report.
    await engine?.close().catch(() => {})
    await policy?.dispose().catch(() => {})
    await lock.release().catch(() => {})
    throw error
  }
}

/** What can be read and checked before the model is loaded. */
async function readInputs(config: Config, options: EvaluateOptions, world: World) {
  requireField('data.eval', config.data.eval, 'the problem file to measure')
  checkAlone(config, world)
  const { onUnusable, onDownload } = options
  const hooks = { ...(onUnusable && { onUnusable }), ...(onDownload && { onDownload }) }
  const data = { ...config.data, ...hooks, field: 'data.eval', signal: options.signal }
  const environment = await loadEnvironment(config.task.environment)
  const [, verifier] = await loadJudge(config.task, environment)
  const never = () =>
    new RapoError('ERR_RAPO_INTERNAL', `${nameOf(data.eval)} is never read: a promise cannot settle`)
  const reading = readProblems(data.eval, verifier, data)
  const problems = await waitFor(reading, { signal: options.signal, fault: never })
  const { modelDir, adapterDir } = await locateModel(options.dir, hubOptions(data))
  if (!options.loadPolicy) checkModel(modelDir)
  const tokenizer = loadTokenizer(modelDir)
  const { maxNewTokens } = config.sampling
  const { encode, stopTokenIds, fitting } = encodeProblems(problems, modelDir, tokenizer, maxNewTokens, data)
  const hard = readHardProblems(
    config,
    fitting.map(({ problem }) => problem),
  )
  return {
    ...{ data, environment, verifier, tokenizer, template: encode.template, stopTokenIds, fitting, hard },
    ...{ modelDir, adapterDir },
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
