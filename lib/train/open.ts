/** Everything that has to be there, and to fit together, before the first step: checked before anything is written. */
import { existsSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { writeWhole } from '../base/files.js'
import { truncateJsonLines } from '../base/jsonl.js'
import type { Lock } from '../base/lock.js'
import { plural } from '../base/text.js'
import { anySignal, told, waitFor } from '../base/wait.js'
import { type Config, requireField, trainingOptions } from '../config/config.js'
import { stringifyConfig } from '../config/load.js'
import { type Cursor, createCursor } from '../data/cursor.js'
import { hubOptions } from '../data/fields.js'
import { readProblems } from '../data/problems.js'
import { type EncodeContext, type EncodedPrompt, fitContext, fitModel, templateFor } from '../data/prompts.js'
import { checkModel } from '../model/directory.js'
import { openPolicy } from '../model/engine.js'
import { type HubOptions, resolveModel } from '../model/hub.js'
import type { LoadPolicy, Policy } from '../model/policy.js'
import { stopTokenIdsFor } from '../model/template.js'
import { checkTokenizerFits, loadTokenizer, readJson } from '../model/tokenizer.js'
import { checkAnswerOf, loadRewards, type RewardPart } from '../reward/rewards.js'
import { localEngine, type RolloutEngine } from '../rollout/engine.js'
import {
  type Checkpoint,
  readLatestCheckpoint,
  removeStaleCheckpoints,
  type TrainerState,
} from './checkpoint.js'
import { checkDisk, checkpointBytes, describeDisk, freeDisk, planDisk } from './disk.js'
import { type Observer, openObserver } from './observe/observe.js'
import { checkOrigin, originOf } from './origin.js'
import { clearRun, createRunDir, lockRun } from './run.js'

/** How a run is opened. */
export interface OpenOptions {
  /** Go on from the newest checkpoint in config.run.output. */
  readonly resume?: boolean
  /** Replace a run that is there already. */
  readonly overwrite?: boolean
  /** Told of the rows that config.data.dropUnusable leaves out. */
  readonly onUnusable?: (rows: readonly string[]) => void
  /** Told, in a text for people, what they should know of the run, such as the disk that it takes. */
  readonly onNotice?: (text: string) => void
  /** Bytes of a model or of data that is fetched from the hub. */
  readonly onDownload?: HubOptions['onProgress']
  /** Default: the engine's. */
  readonly loadPolicy?: LoadPolicy
  /** Aborting rejects with the signal's reason; see train. */
  readonly signal?: AbortSignal
}

export interface OpenRun {
  readonly policy: Policy
  /** What samples the rollouts. */
  readonly engine: RolloutEngine
  /** Where the tokenizer is: model.dir, or its place in the hub's cache. */
  readonly modelDir: string
  readonly rewards: readonly RewardPart[]
  readonly cursor: Cursor
  readonly context: EncodeContext
  readonly stopTokenIds: readonly number[]
  /** After the steps done already. */
  readonly state: TrainerState
  /** The reference is one of a checkpoint, not the one that the run began with. */
  readonly hasMoved: boolean
  readonly metricsFile: string
  readonly samplesFile: string
  readonly observer: Observer
  readonly lock: Lock
  /** Aborted by options.signal, or where the lock is lost. */
  readonly signal: AbortSignal
  /** Closes everything, whatever fails; throws the first failure. */
  close(): Promise<void>
}

/**
 * Opens a new run, or goes on with one: reads and checks problems, tokenizer and model, takes the run directory, drops
 * what a killed process wrote after its last checkpoint. Throws RapoError; then nothing of an earlier run is touched.
 */
export async function openRun(config: Config, options: OpenOptions = {}): Promise<OpenRun> {
  const { model, run } = config
  requireField('data.train', config.data.train, 'the problem file to train on')
  requireField('run.output', run.output, 'the run directory')
  const rewards = await loadRewards(config.task)
  const { onUnusable, onNotice, onDownload, signal: aborted } = options
  const hooks = { ...(onUnusable && { onUnusable }), ...(onDownload && { onDownload }), signal: aborted }
  const data = { ...config.data, ...hooks }
  const problems = await withSignal(readProblems(data.train, checkAnswerOf(rewards), data), options.signal)
  const resolve = (name: string) => withSignal(resolveModel(name, hubOptions(hooks)), aborted)
  const modelDir = await resolve(model.dir)
  const referenceDir = model.reference ? await resolve(model.reference) : modelDir
  // A loader of the caller's own may know other models.
  if (!options.loadPolicy) for (const dir of new Set([modelDir, referenceDir])) checkModel(dir)
  if (model.refModelSyncSteps > 0) checkShapes(modelDir, referenceDir)
  const tokenizer = loadTokenizer(modelDir)
  const template = templateFor(problems, config.data, modelDir)
  const stopTokenIds = stopTokenIdsFor(modelDir, tokenizer, template)
  const encode = { tokenizer, template, maxNewTokens: config.sampling.maxNewTokens }
  const fitting = fitContext(problems, modelDir, encode, data)
  if (!options.loadPolicy) await checkRoom(config, options, { modelDir, referenceDir }, fitting)
  const origin = originOf(config, { modelDir, referenceDir })
  const take = () => {
    if (!options.resume) createRunDir(run.output, options.overwrite ?? false)
    else if (!existsSync(run.output)) throw noCheckpoint(run.output)
  }
  take()

  const lock = await lockRun(run.output, 'train')
  let policy: Policy | undefined
  let engine: RolloutEngine | undefined
  let observer: Observer | undefined
  const close = () =>
    inOrder(
      () => observer?.close(),
      () => engine?.close(),
      () => policy?.dispose(),
      lock.release,
    )
  try {
    // Once more, and the checkpoint only now: another process may have had the directory until here.
    take()
    const from = options.resume ? readLatestCheckpoint(run.output) : undefined
    if (options.resume && !from) throw noCheckpoint(run.output)
    checkOrigin(from?.trainer.origin, origin, config)
    const stepsDone = from?.trainer.step ?? 0
    options.signal?.throwIfAborted()
    policy = await openPolicy(
      from?.dir ?? modelDir,
      trainingOptions(config, from?.referenceDir ?? referenceDir),
      run.threads,
      options.loadPolicy,
    )
    checkTokenizerFits(tokenizer, policy.info, modelDir)
    checkSync(config, policy)
    const context = { ...encode, info: policy.info }
    const usable = fitModel(fitting, context, data).map(({ problem }) => problem)
    if (usable.length < config.sampling.promptsPerStep)
      await told(onNotice?.(fewProblems(usable.length, config)), aborted)
    const cursor = createCursor(usable, run.seed, from?.trainer.cursor)
    observer = await openObserver(config, stepsDone)
    if (from) await loadState(policy, from)
    engine = localEngine(policy)
    options.signal?.throwIfAborted()

    lock.check()
    if (!from) clearRun(run.output)
    removeStaleCheckpoints(run.output)
    const metricsFile = path.join(run.output, 'metrics.jsonl')
    const samplesFile = path.join(run.output, 'samples.jsonl')
    for (const file of [metricsFile, samplesFile]) truncateJsonLines(file, stepsDone)
    writeWhole(path.join(run.output, 'config.yaml'), stringifyConfig(config))

    const { entropyTarget, entropyCoef: initial } = config.objective
    const entropyCoef = (entropyTarget !== undefined ? from?.trainer.entropyCoef : undefined) ?? initial
    const state = { step: stepsDone, cursor: cursor.state(), entropyCoef, origin }
    const signal = anySignal(lock.lost, options.signal)
    return {
      ...{ policy, engine, modelDir, rewards, cursor, context, stopTokenIds, state },
      hasMoved: from?.referenceDir !== undefined,
      ...{ metricsFile, samplesFile, observer, lock, signal, close },
    }
  } catch (error) {
    // What was wrong first counts.
    await close().catch(() => {})
    throw error
  }
}

/** Whether the memory and the disk suffice, before anything is loaded or written. */
async function checkRoom(
  config: Config,
  { onNotice, signal }: OpenOptions,
  dirs: { readonly modelDir: string; readonly referenceDir: string },
  prompts: readonly EncodedPrompt[],
): Promise<void> {
  const { checkMemory, planRun } = await import('./memory.js')
  const memory = await planRun(config, dirs, prompts)
  if (config.model.device === 'cpu') checkMemory(memory)
  const { output } = config.run
  const disk = planDisk(config, memory)
  const free = await freeDisk(output)
  // Those of the run itself are part of the plan, and those of a run that it replaces go first.
  const room = free === undefined ? undefined : free + checkpointBytes(output)
  checkDisk(disk, config, room)
  await told(onNotice?.(describeDisk(disk, room)), signal)
}

/** Of config.json: what the tensors' shapes follow from. */
const shapeFields = [
  ...['hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads'],
  ...['num_key_value_heads', 'head_dim', 'vocab_size', 'tie_word_embeddings'],
]

/** Now, and not when the reference is updated for the first time. */
function checkShapes(modelDir: string, referenceDir: string): void {
  const [own, other] = [modelDir, referenceDir].map(dir => readJson(path.join(dir, 'config.json')))
  const field = shapeFields.find(name => own?.[name] !== other?.[name])
  if (field === undefined) return
  throw new RapoError(
    'ERR_RAPO_CONFIG',
    `model.refModelSyncSteps needs a reference of the model's shape: ${field} is ${other?.[field]} in ${referenceDir} and ${own?.[field]} in ${modelDir}`,
  )
}

function checkSync({ model }: Config, policy: Policy): void {
  if (model.refModelSyncSteps === 0 || (policy.syncReference && policy.saveReference)) return
  throw new RapoError(
    'ERR_RAPO_CONFIG',
    `model.refModelSyncSteps is ${model.refModelSyncSteps}; it must be 0 for a policy without syncReference and saveReference`,
  )
}

async function loadState(policy: Policy, { dir, stateFile }: Checkpoint): Promise<void> {
  if (existsSync(stateFile)) return policy.loadState(stateFile)
  throw new RapoError(
    'ERR_RAPO_CONFIG',
    `${dir} has no rapo/state.safetensors, the optimizer's state, which run.saveOptimizer last keeps of the newest checkpoint ` +
      'alone: put the name of the newest back into checkpoints/latest, or start a new run with this directory as model.dir',
  )
}

function fewProblems(count: number, { sampling }: Config): string {
  return `data.train has ${plural(count, 'problem')}, fewer than sampling.promptsPerStep, ${sampling.promptsPerStep}: a step takes some of them more than once`
}

function noCheckpoint(dir: string): RapoError {
  return new RapoError(
    'ERR_RAPO_CONFIG',
    `${dir} has no checkpoint to resume from: start it again with --overwrite`,
  )
}

/** For work that takes no signal: its result is not waited for any more. */
function withSignal<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  return waitFor(work, {
    signal,
    fault: () => new RapoError('ERR_RAPO_INTERNAL', 'the run cannot be opened: a promise never settles'),
  })
}

/** One after the other, even where one fails; throws the first failure. */
async function inOrder(...parts: (() => unknown)[]): Promise<void> {
  const failures: unknown[] = []
  for (const part of parts) {
    try {
      await part()
    } catch (error) {
      failures.push(error)
    }
  }
  if (failures.length > 0) throw failures[0]
}
