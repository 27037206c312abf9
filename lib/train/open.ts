/** Opens a run: everything that training needs is read and checked before anything is written. */
import { existsSync, statSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { writeWhole } from '../base/files.js'
import { truncateJsonLines } from '../base/jsonl.js'
import { type Lock, noLock } from '../base/lock.js'
import { notices } from '../base/notice.js'
import { digest } from '../base/random.js'
import { plural } from '../base/text.js'
import { anySignal, told, waitFor } from '../base/wait.js'
import { type Config, requireField, trainingOptions } from '../config/config.js'
import { stringifyConfig } from '../config/load.js'
import { loraOptions } from '../config/lora.js'
import { createCursor } from '../data/cursor.js'
import { hubOptions } from '../data/fields.js'
import { readProblems } from '../data/problems.js'
import { type EncodeContext, type EncodedPrompt, encodeProblems, fitModel } from '../data/prompts.js'
import { type AdapterShape, isAdapter, readAdapter, shapeOf } from '../model/adapter.js'
import { checkModel } from '../model/directory.js'
import { inBytes, type OpenPolicyOptions, openPolicy } from '../model/engine.js'
import { type HubOptions, resolveModel } from '../model/hub.js'
import type { LoadPolicy, Policy } from '../model/policy.js'
import { checkTokenizerFits, loadTokenizer, readJson } from '../model/tokenizer.js'
import type { NamedEnvironment } from '../reward/environment.js'
import { loadEnvironment } from '../reward/environments.js'
import { checkAnswerOf, loadRewards } from '../reward/rewards.js'
import type { RolloutEngine } from '../rollout/engine.js'
import { checkFilters, checkSync, openEngine } from '../rollout/open.js'
import { knownText } from '../rollout/servers/checks.js'
import { checkAlone, type Joined, joinWorld, leaveWorld } from '../world/join.js'
import { compareRanks, settingsOf } from '../world/same.js'
import { alone, type World } from '../world/world.js'
import { createRollouts, type Rollouts } from './ahead.js'
import { readAhead } from './ahead-file.js'
import {
  type Checkpoint,
  readLatestCheckpoint,
  removeStaleCheckpoints,
  type TrainerState,
} from './checkpoint.js'
import { checkDisk, checkpointBytes, type DiskPlan, describeDisk, freeDisk, planDisk } from './disk.js'
import { type Evaluations, readEvalSet, truncateEvaluations } from './evaluation.js'
import type { MemoryPlan } from './memory.js'
import { loadHook, type Observer, openObserver } from './observe/observe.js'
import { checkOrigin, haveSameWeights, originOf } from './origin.js'
import { clearRun, createRunDir, describeForeign, lockRun } from './run.js'

/** How a run is opened. */
export interface OpenOptions {
  /** Continues from the newest checkpoint in config.run.output. */
  readonly resume?: boolean
  /** Replaces an earlier run in config.run.output. */
  readonly overwrite?: boolean
  /** Called with the rows that config.data.dropUnusable leaves out. Like the next three hooks, on rank 0 alone. */
  readonly onUnusable?: (rows: readonly string[]) => void
  /**
   * Told, in a text for people, what they should know of the run, such as the disk that it takes, or a server that is not used.
   * Absent: what is told while the run goes on becomes a warning of the process.
   */
  readonly onNotice?: (text: string) => void
  /** Called with the number of bytes so far while a model or data is fetched from the hub. */
  readonly onDownload?: HubOptions['onProgress']
  /** Told a few times a second how many bytes of a model's files have been read, of how many, and what is being read. */
  readonly onLoading?: OpenPolicyOptions['onLoading']
  /** Loads the model. Default: the engine's loadPolicy. */
  readonly loadPolicy?: LoadPolicy
  /** Aborting rejects with the signal's reason; see train. */
  readonly signal?: AbortSignal
}

export interface OpenRun {
  /** The processes that train together. Rank 0 alone writes. */
  readonly world: World
  readonly policy: Policy
  /** The rollouts of each step. */
  readonly rollouts: Rollouts
  /** The directory of the tokenizer: model.dir, or its place in the hub's cache. */
  readonly modelDir: string
  /** Where the task has several turns. */
  readonly environment: NamedEnvironment | undefined
  /** The engine that samples the rollouts. */
  readonly engine: RolloutEngine
  /** With the section lora: what checkpoints call the model that their adapter changes. */
  readonly baseModel?: string
  readonly context: EncodeContext
  /** With eval.every. */
  readonly evaluations: Evaluations | undefined
  /** The state after the steps done already. */
  readonly state: TrainerState
  /** Whether the reference comes from a checkpoint, and is not the one that the run began with. */
  readonly hasMoved: boolean
  readonly metricsFile: string
  readonly samplesFile: string
  readonly observer: Observer
  readonly lock: Lock
  /** Tells options.onNotice; where that is missing, or fails, see notices. */
  notify(text: string): void
  /** Aborted by options.signal, when options.onNotice fails, or when the lock is lost. */
  readonly signal: AbortSignal
  /** Closes everything, even if something fails, and throws the first failure. The other ranks are told of `error`. */
  close(error?: unknown): Promise<void>
}

/** What a run needs of its configuration and of files: read and checked, in part before the model is loaded. Writes nothing. */
export async function prepareRun(config: Config, options: OpenOptions, world: World = alone) {
  requireField('data.train', config.data.train, 'the problem file to train on')
  checkFilters(config)
  checkAlone(config, world)
  if (config.sampling.temperature === 0) {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      'sampling.temperature is 0, greedy, which is for measurements; to train it must be ≥ 1e-6 and ≤ 100',
    )
  }
  const task = await world.together('reading the problems', () => readTask(config, options))
  const fetching = () => (world.localRank === 0 ? resolveModels(config, task) : undefined)
  // One rank of each host downloads the model, and the others find it in the cache.
  await world.together('fetching the model', fetching)
  return world.together('checking the inputs', () => checkInputs(config, options, task, world))
}

async function readTask(config: Config, { onUnusable, onDownload, signal }: OpenOptions) {
  const environment = await loadEnvironment(config.task.environment)
  const rewards = await loadRewards(config.task, environment)
  const hooks = { ...(onUnusable && { onUnusable }), ...(onDownload && { onDownload }), signal }
  const data = { ...config.data, ...hooks, field: 'data.train' }
  const problems = await withSignal(readProblems(data.train, checkAnswerOf(rewards), data), signal)
  return { environment, rewards, data, hooks, problems }
}

type Task = Awaited<ReturnType<typeof readTask>>

async function resolveModels({ model }: Config, { hooks }: Task) {
  const resolve = (name: string) => withSignal(resolveModel(name, hubOptions(hooks)), hooks.signal)
  const modelDir = await resolve(model.dir)
  return { modelDir, referenceDir: model.reference ? await resolve(model.reference) : modelDir }
}

async function checkInputs(config: Config, options: OpenOptions, task: Task, world: World) {
  const { model } = config
  const { environment, rewards, data, problems } = task
  const { modelDir, referenceDir } = await resolveModels(config, task)
  // The caller's own loader may know other models.
  if (!options.loadPolicy) {
    checkSync(config)
    checkModel(modelDir, 'model.dir')
    if (referenceDir !== modelDir) checkModel(referenceDir, 'model.reference')
  }
  if (model.refModelSyncSteps > 0) checkShapes(modelDir, referenceDir)
  const unknownBase = await checkStart(config, modelDir, options.signal)
  const tokenizer = loadTokenizer(modelDir)
  const { maxNewTokens } = config.sampling
  const encoded = encodeProblems(problems, modelDir, tokenizer, maxNewTokens, data)
  const { verifier } = rewards[0]!
  const reading = readEvalSet(config, { modelDir, tokenizer, verifier, options: data })
  const evalSet = await withSignal(reading, options.signal)
  const hook = world.rank === 0 ? await loadHook(config) : undefined
  const dirs = { modelDir, referenceDir }
  const room = options.loadPolicy
    ? undefined
    : await checkRoom(config, dirs, { prompts: encoded.fitting, evalPrompts: evalSet?.prompts }, world)
  return {
    ...{ environment, rewards, data, modelDir, referenceDir, evalSet, hook, room, unknownBase },
    ...encoded,
  }
}

/**
 * Opens a new run, or continues one: reads and checks problems, tokenizer and model, takes the run directory, and drops lines
 * that a killed process wrote after its last checkpoint. Throws RapoError; an earlier run is then unchanged. If a launcher
 * started several processes, each process opens the run as one rank.
 */
export async function openRun(config: Config, given: OpenOptions = {}): Promise<OpenRun> {
  requireField('run.output', config.run.output, 'the run directory')
  const { onUnusable, onNotice, onDownload, onLoading, ...rest } = given
  const joined = await joinWorld(config, given.signal)
  const { world } = joined
  // Only rank 0 calls the hooks that tell people something.
  const options = world.rank === 0 ? given : rest
  try {
    const prepared = await prepareRun(config, options, world)
    return await openPrepared(config, options, joined, prepared)
  } catch (error) {
    await leaveWorld(world, error).catch(() => {})
    throw error
  }
}

async function openPrepared(
  config: Config,
  options: OpenOptions,
  { world, device, threads }: Joined,
  prepared: Awaited<ReturnType<typeof prepareRun>>,
): Promise<OpenRun> {
  const { model, run } = config
  const isLora = config.lora.r > 0
  const { environment, rewards, data, modelDir, referenceDir, evalSet, room, unknownBase } = prepared
  const { stopTokenIds, encode, fitting, hook } = prepared
  const { onNotice, signal: aborted } = options
  const isWriter = world.rank === 0
  const origin = originOf(config, { modelDir, referenceDir })
  // A launcher starts the same command again when a process has failed.
  const isRestart = world.restarts > 0 && !options.resume
  const isResumed = () => options.resume || (isRestart && readLatestCheckpoint(run.output) !== undefined)
  const take = () => {
    if (!isResumed()) createRunDir(run.output, options.overwrite || isRestart)
    else if (!existsSync(run.output)) throw noCheckpoint(run.output)
  }
  const lock = await world.together('taking the run directory', async () => {
    if (!isWriter) return noLock
    if (room) await told(onNotice?.(describeDisk(room.disk, room.free)), aborted)
    if (unknownBase) await told(onNotice?.(unknownBase), aborted)
    const foreign = isResumed() ? undefined : describeForeign(run.output)
    take()
    if (foreign) await told(onNotice?.(foreign), aborted)
    return lockRun(run.output, 'train')
  })
  let policy: Policy | undefined
  let engine: RolloutEngine | undefined
  let observer: Observer | undefined
  const close = (error?: unknown) =>
    inOrder(
      () => observer?.close(),
      () => engine?.close(),
      () => policy?.dispose(),
      lock.release,
      () => leaveWorld(world, error),
    )
  const notice = notices(onNotice)
  const signal = anySignal(lock.lost, notice.failed, options.signal)
  const load = async () => {
    // Checked again, and the checkpoint is read only now: until here another process may have held the directory.
    if (isWriter) take()
    const from = isResumed() ? readLatestCheckpoint(run.output) : undefined
    if (options.resume && !from) throw noCheckpoint(run.output)
    checkOrigin(from?.trainer.origin, origin, config)
    if (from) checkAdapter(from.dir, config)
    options.signal?.throwIfAborted()
    const adapterDir = isLora ? from?.dir : undefined
    const training = trainingOptions(config, from?.referenceDir ?? referenceDir, adapterDir)
    policy = await openPolicy(
      isLora ? modelDir : (from?.dir ?? modelDir),
      { ...training, device, ...(world.handle && { world: world.handle }) },
      threads,
      options,
    )
    checkTokenizerFits(encode.tokenizer, policy.info, modelDir)
    checkMethods(config, policy)
    const context = { ...encode, info: policy.info }
    const prompts = fitModel(fitting, context, data)
    const usable = prompts.map(({ problem }) => problem)
    if (usable.length < config.sampling.promptsPerStep)
      await told(onNotice?.(fewProblems(usable.length, config)), aborted)
    const evalPrompts = evalSet && fitModel(evalSet.prompts, context, data)
    observer = isWriter ? openObserver(config, hook, from?.trainer.step ?? 0, notice.call) : noObserver
    if (from) await loadState(policy, from, options)
    engine = openEngine(config, {
      ...{ policy, modelDir, stopTokenIds, onNotice: notice.call },
      prompts: [...prompts, ...(evalPrompts ?? [])].map(({ promptIds }) => promptIds),
      text: knownText(usable[0]!.prompt, encode.tokenizer),
    })
    const rollouts = createRollouts(
      {
        ...{ world, engine, context, environment, stopTokenIds, rewards, signal },
        cursorAt: state => createCursor(usable, run.seed, state),
        from: from?.trainer.cursor,
        ahead: from?.rolloutsFile === undefined ? undefined : readAhead(from.rolloutsFile, usable),
      },
      config,
    )
    signal.throwIfAborted()
    return { from, evalPrompts, policy, engine, observer, context, rollouts }
  }
  try {
    const { from, evalPrompts, ...loaded } = await world.together('loading the model', load)
    const step = from?.trainer.step ?? 0
    const cursor = loaded.rollouts.cursor()
    await compareRanks(world, {
      checkpoint: step,
      'problems of data.train': [cursor.fingerprint, cursor.columnsFingerprint],
      'files of model.dir': origin.model.digest,
      'files of model.reference': origin.reference?.digest,
      'files of lora.adapterPath': origin.adapter?.digest,
      configuration: digest(settingsOf(config)),
    })
    const metricsFile = path.join(run.output, 'metrics.jsonl')
    const samplesFile = path.join(run.output, 'samples.jsonl')
    const evalFiles = {
      file: path.join(run.output, 'evals.jsonl'),
      samplesFile: path.join(run.output, 'evals-samples.jsonl'),
    }
    const [scores] = await world.gather('clearing the run directory', () => {
      lock.check()
      if (!isWriter) return undefined
      if (!from) clearRun(run.output)
      removeStaleCheckpoints(run.output)
      for (const file of [metricsFile, samplesFile]) truncateJsonLines(file, step)
      const known = evalSet && truncateEvaluations(evalFiles, step)
      writeWhole(path.join(run.output, 'config.yaml'), stringifyConfig(config))
      return known
    })
    const evaluations = evalSet && { ...evalSet, prompts: evalPrompts!, ...evalFiles, scores: scores! }
    const { entropyTarget, entropyCoef: initial } = config.objective
    const entropyCoef = (entropyTarget !== undefined ? from?.trainer.entropyCoef : undefined) ?? initial
    const state = { step, cursor, entropyCoef, origin }
    return {
      ...loaded,
      ...{ world, modelDir, environment, state, evaluations },
      ...{ metricsFile, samplesFile, lock, signal, close, notify: notice.call },
      ...(isLora && { baseModel: existsSync(model.dir) ? path.resolve(model.dir) : model.dir }),
      hasMoved: from?.referenceDir !== undefined,
    }
  } catch (error) {
    // The first error is the one to report.
    await close(error).catch(() => {})
    throw error
  }
}

/** What ranks have that do not write. */
const noObserver: Observer = { step: async () => {}, evaluated() {}, close() {} }

/** The memory and the disk that a run will need. */
export interface Room {
  readonly memory: MemoryPlan
  readonly disk: DiskPlan
  /** Bytes of disk that the run may take; undefined where nothing says so. */
  readonly free: number | undefined
}

/** Whether the memory and the disk suffice, before anything is loaded or written. */
async function checkRoom(
  config: Config,
  dirs: { readonly modelDir: string; readonly referenceDir: string },
  { prompts, evalPrompts }: Readonly<Record<'prompts' | 'evalPrompts', readonly EncodedPrompt[] | undefined>>,
  { size, localSize }: World,
): Promise<Room> {
  const { availableMemory, checkMemory, planRun } = await import('./memory.js')
  const memory = await planRun(config, dirs, prompts!, evalPrompts, size)
  if (config.model.device === 'cpu') checkMemory(memory, availableMemory() / localSize)
  const output = config.run.output || 'runs'
  const disk = planDisk(config, memory)
  const found = await freeDisk(output)
  // Those of the run itself are part of the plan, and those of a run that it replaces go first.
  const free = found === undefined ? undefined : found + checkpointBytes(output)
  checkDisk(disk, config, free)
  return { memory, disk, free }
}

/** The fields of config.json that determine the shapes of the tensors. */
const shapeFields = [
  ...['hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads'],
  ...['num_key_value_heads', 'head_dim', 'vocab_size', 'tie_word_embeddings'],
]

/** Called when the run is opened, so that a fault does not show only when the reference is updated for the first time. */
function checkShapes(modelDir: string, referenceDir: string): void {
  const [own, other] = [modelDir, referenceDir].map(dir => readJson(path.join(dir, 'config.json')))
  const field = shapeFields.find(name => own?.[name] !== other?.[name])
  if (field === undefined) return
  throw new RapoError(
    'ERR_RAPO_CONFIG',
    `model.refModelSyncSteps needs a reference of the model's shape: ${field} is ${other?.[field]} in ${referenceDir} and ${own?.[field]} in ${modelDir}`,
  )
}

/** Policies of the caller's own loader may lack some of the methods. */
function checkMethods({ model, lora }: Config, policy: Policy): void {
  const refuse = (field: string, value: number, methods: string) => {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `${field} is ${value}; it must be 0 for a policy without ${methods}`,
    )
  }
  if (model.refModelSyncSteps > 0 && !(policy.syncReference && policy.saveReference))
    refuse('model.refModelSyncSteps', model.refModelSyncSteps, 'syncReference and saveReference')
  if (lora.r > 0 && !policy.saveAdapter) refuse('lora.r', lora.r, 'saveAdapter')
}

function describeShape(shape: AdapterShape | undefined): string {
  if (!shape) return 'lora.r 0'
  const { r, loraAlpha, useRslora, targetModules } = shape
  return `lora.r ${r}, loraAlpha ${loraAlpha}, useRslora ${useRslora} and targetModules ${targetModules.join(',')}`
}

/**
 * Throws ERR_RAPO_CONFIG if the adapter that the run is to begin with has another shape than the configuration says, or
 * belongs to another model. Returns a notice where it cannot be found out to which model it belongs.
 */
async function checkStart(
  { lora, model, run }: Config,
  modelDir: string,
  signal: AbortSignal | undefined,
): Promise<string | undefined> {
  const { adapterPath } = lora
  if (adapterPath === undefined) return undefined
  const refuse = (what: string) => {
    throw new RapoError('ERR_RAPO_CONFIG', `lora.adapterPath is ${adapterPath}, ${what}`)
  }
  const { shape, baseModel } = readAdapter(adapterPath)
  const [is, wanted] = [shape, shapeOf(loraOptions(lora, run.seed))].map(describeShape)
  if (is !== wanted) refuse(`an adapter with ${is}; the configuration says ${wanted}: write the former`)
  if (baseModel === undefined || baseModel === model.dir) return undefined
  const offline = { env: { ...process.env, HF_HUB_OFFLINE: '1' }, signal }
  const baseDir = await resolveModel(baseModel, offline).catch(() => baseModel)
  const isHere = existsSync(path.join(baseDir, 'config.json'))
  if (isHere && haveSameWeights(baseDir, modelDir)) return undefined
  const repositories = [baseModel, model.dir].map(name => /^[\w.-]+\/[\w.-]+(?=@|$)/.exec(name)?.[0])
  const areNames = repositories.every(name => name !== undefined) && repositories[0] !== repositories[1]
  if (!isHere && !areNames)
    return `the adapter of lora.adapterPath was made for ${baseModel}, which is not on this machine: whether model.dir is the same model is not checked`
  return refuse(
    `an adapter for ${baseModel} (base_model_name_or_path in its adapter_config.json), and model.dir is ${model.dir}, which is another model`,
  )
}

/** A run goes on with the adapter that it began with, or without one. */
function checkAdapter(checkpoint: string, { lora, run }: Config): void {
  const was = describeShape(isAdapter(checkpoint) ? readAdapter(checkpoint).shape : undefined)
  const now = describeShape(lora.r > 0 ? shapeOf(loraOptions(lora, run.seed)) : undefined)
  if (was === now) return
  throw new RapoError(
    'ERR_RAPO_CONFIG',
    `the run in ${run.output} began with ${was}, not with ${now}: go on with the former`,
  )
}

async function loadState(
  policy: Policy,
  { dir, stateFile }: Checkpoint,
  { onLoading }: OpenOptions,
): Promise<void> {
  if (existsSync(stateFile))
    return policy.loadState(stateFile, inBytes(statSync(stateFile).size, "the optimizer's state", onLoading))
  throw new RapoError(
    'ERR_RAPO_CONFIG',
    `${dir} has no rapo/state.safetensors, the optimizer's state, which run.saveOptimizer last keeps of the newest checkpoint ` +
      'alone: put the name of the newest back into checkpoints/latest, or start a new run with this directory as model.dir',
  )
}

/** Of problems that a step takes more than once. */
export function fewProblems(count: number, { sampling }: Config): string {
  return `data.train has ${plural(count, 'problem')}, fewer than sampling.promptsPerStep, ${sampling.promptsPerStep}: a step takes some of them more than once`
}

function noCheckpoint(dir: string): RapoError {
  return new RapoError(
    'ERR_RAPO_CONFIG',
    `${dir} has no checkpoint to resume from: start it again with --overwrite`,
  )
}

/** Adds a signal to work that takes none: after an abort the result is no longer waited for. */
function withSignal<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  return waitFor(work, {
    signal,
    fault: () => new RapoError('ERR_RAPO_INTERNAL', 'the run cannot be opened: a promise never settles'),
  })
}

/** Runs all, one after the other, even if one fails. Throws the first failure. */
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
