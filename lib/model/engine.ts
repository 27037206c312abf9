/** The engine addon with types: checks every field, keeps a policy's calls in order, handles abort and progress. */
import { readdirSync, statSync } from 'node:fs'
import path from 'node:path'
import { type CallOptions, type Control, checkCallOptions, runCall } from '../base/call.js'
import { invalidValue, RapoError } from '../base/errors.js'
import { byteSize, plainLine, plural } from '../base/text.js'
import { told } from '../base/wait.js'
import type { ObjectiveMetrics } from '../loss/objective.js'
import { type Objective, validateObjective } from '../loss/objective.js'
import { entriesOf, mapRows, rowArrays } from '../loss/rows.js'
import { type EngineAddon, loadEngine, nameCudaLibrary } from '../setup/engine-addon.js'
import { type AdapterShape, adapterConfigText, nativeAdapter, readAdapter, shapeOf } from './adapter.js'
import { type BroadcastAddon, openGroup } from './broadcast.js'
import { type ModelSource, modelDTypeOf, readModelConfig, withDtype } from './config.js'
import { checkModel } from './directory.js'
import {
  type AdamW,
  type BroadcastGroup,
  type Completions,
  type Device,
  devicePattern,
  deviceRange,
  type GroupOptions,
  type LoadOptions,
  type LoadPolicy,
  type LogprobRows,
  type LoraOptions,
  type MicroBatch,
  type ModelDType,
  type ModelInfo,
  modelDTypes,
  type PackedTokens,
  type Policy,
  type PolicyOptions,
  type SamplingParams,
  type SaveOptions,
  type StepResult,
  shards,
  type TensorInfo,
} from './policy.js'

export const loadPolicy: LoadPolicy = async (dir, options = {}) => {
  text('dir', dir)
  fields('options', options, { ...optionFields, signal: true, onProgress: true })
  const { signal, onProgress, ...rest } = options
  checkCallOptions({ signal, onProgress })
  const { shape, ...checked } = checkOptions(rest)
  const model = checkModel(dir)
  const native = withReference(dir, checked, checkModel)
  const addon = engine()
  if (native.device !== 'cpu') nameCudaLibrary(addon)
  const { handle, info, ignored } = await runCall(new addon.Control(), { signal, onProgress }, control =>
    addon.load(model, native, control),
  )
  if (ignored.length > 0) warnOfIgnored(ignored)
  const { reference, device } = native
  return new NativePolicy(addon, handle, Object.freeze(info), model, { reference, shape, device })
}

interface ReferenceOptions {
  readonly referenceDir: string | undefined
  readonly lora: object | undefined
  readonly referenceLora: object | undefined
}

/** The reference as the engine is told of it: with an adapter, the policy's own model is one without loading it again. */
function withReference<T extends ReferenceOptions>(
  dir: string,
  { referenceDir, ...native }: T,
  read: (dir: string) => ModelSource,
) {
  const isOwn = native.lora !== undefined && referenceDir !== undefined
  const baseReference = isOwn && path.resolve(referenceDir) === path.resolve(dir)
  if (native.referenceLora && !baseReference) {
    const expected = "the policy's own directory, and a policy with an adapter, with referenceAdapterDir"
    invalidValue('referenceDir', referenceDir, expected)
  }
  const reference = referenceDir === undefined || baseReference ? undefined : read(referenceDir)
  return { ...native, baseReference, reference }
}

/** names: "FILE: NAME" each. The message counts rotary frequencies (one per layer) and names value heads. */
function warnOfIgnored(names: readonly string[]): void {
  const buffers = names.filter(name => name.endsWith('rotary_emb.inv_freq'))
  const shown = names.filter(name => !buffers.includes(name))
  if (buffers.length > 0) shown.push(buffers[0]!)
  const more =
    buffers.length > 1
      ? ` and ${plural(buffers.length - 1, 'more rotary frequency', 'more rotary frequencies')}`
      : ''
  process.emitWarning(
    plainLine(`ignored, because generation and training do not use them: ${shown.join(', ')}${more}`),
    'RapoWarning',
  )
}

/** The options with their defaults. */
function checkOptions(options: PolicyOptions) {
  fields('options', options, optionFields)
  const { dtype = 'float32', device = 'cpu', backend, trainable = true, referenceDir } = options
  const { maxGradNorm = 1, headRows = 0, recompute = false, cacheBytes = 2 ** 30, world } = options
  const { stateDtype = 'float32', seed = 0, mergeAdapter = true, referenceAdapterDir } = options
  const { shard = 'none' } = options
  oneOf('dtype', dtype, modelDTypes)
  oneOf('stateDtype', stateDtype, modelDTypes)
  integer('seed', seed, 0)
  if (typeof mergeAdapter !== 'boolean') invalidValue('mergeAdapter', mergeAdapter, 'true or false')
  if (!devicePattern.test(device)) invalidValue('device', device, deviceRange)
  if (backend !== undefined) oneOf('backend', backend, device === 'cpu' ? ['cpu', 'aten'] : ['aten'])
  if (typeof trainable !== 'boolean') invalidValue('trainable', trainable, 'true or false')
  if (referenceDir !== undefined) text('referenceDir', referenceDir)
  range('maxGradNorm', maxGradNorm, '> 0', x => x > 0)
  integer('headRows', headRows, 0)
  integer('cacheBytes', cacheBytes, 1)
  if (typeof recompute !== 'boolean') invalidValue('recompute', recompute, 'true or false')
  oneOf('shard', shard, shards)
  const { shape, lora } = checkAdapter(options)
  if (shape && shard !== 'none') invalidValue('shard', shard, 'none for a policy with an adapter')
  if (stateDtype !== 'float32' && shard !== 'none')
    invalidValue('shard', shard, `none with stateDtype ${stateDtype}`)
  const referenceLora =
    referenceAdapterDir === undefined
      ? undefined
      : storedAdapter('referenceAdapterDir', referenceAdapterDir).lora
  fields('adamw', options.adamw ?? {}, adamwDefaults)
  const adamw = { ...adamwDefaults, ...options.adamw }
  range('adamw.beta1', adamw.beta1, 'in [0, 1)', x => x >= 0 && x < 1)
  range('adamw.beta2', adamw.beta2, 'in [0, 1)', x => x >= 0 && x < 1)
  range('adamw.eps', adamw.eps, '> 0', x => x > 0 && x < Infinity)
  range('adamw.weightDecay', adamw.weightDecay, '≥ 0', x => x >= 0 && x < Infinity)
  return {
    ...{ dtype, device, backend, trainable, referenceDir, shape, lora, mergeAdapter, referenceLora },
    ...{ stateDtype, seed },
    ...{ adamw, maxGradNorm, headRows, recompute, cacheBytes, world, shard },
  }
}

/** The adapter's shape, and the adapter as the engine is told of it; both undefined without one. */
function checkAdapter({ lora, adapterDir }: PolicyOptions) {
  if (lora !== undefined && adapterDir !== undefined)
    invalidValue('adapterDir', adapterDir, 'none with lora, which makes a new adapter')
  if (adapterDir !== undefined) return storedAdapter('adapterDir', adapterDir)
  if (lora === undefined) return { shape: undefined, lora: undefined }
  fields('lora', lora, loraFields)
  const { seed = 0 } = lora
  integer('lora.seed', seed, 0)
  const shape = shapeOf(lora)
  return { shape, lora: nativeAdapter(shape, { seed }) }
}

function storedAdapter(field: string, dir: string) {
  text(field, dir)
  const { shape, file } = readAdapter(dir)
  return { shape, lora: nativeAdapter(shape, { file }) }
}

/** The sizes on which the memory of a policy in use depends. */
export interface RunShape {
  /** Number of tokens in the longest prompt. */
  readonly promptTokens: number
  readonly maxNewTokens: number
  /** Number of completions in one call of generate. */
  readonly sequences: number
  /** See SamplingParams. */
  readonly maxBatch?: number
  /** Ranks that train together. Default 1. */
  readonly processes?: number
}

/**
 * All in bytes. Held all the time: weights, masters (of bfloat16 weights), moments, gradients, reference. Added in training:
 * activations, and the logits of a chunk of the head. Added in generation: merged (the matrices that an adapter changes,
 * merged), cache (keys and values), and sampling (logits and the activations of one layer).
 */
export interface MemoryPrediction {
  readonly weights: number
  readonly masters: number
  readonly moments: number
  readonly gradients: number
  readonly reference: number
  readonly activations: number
  readonly logits: number
  readonly merged: number
  readonly cache: number
  readonly sampling: number
}

/** Predicts the memory of loadPolicy(dir, options) and its use from config.json alone; no weights are read. */
export async function predictMemory(
  dir: string,
  options: PolicyOptions,
  shape: RunShape,
): Promise<MemoryPrediction> {
  text('dir', dir)
  const { promptTokens, maxNewTokens, sequences, maxBatch = 0, processes = 1 } = shape
  integer('promptTokens', promptTokens, 1)
  integer('maxNewTokens', maxNewTokens, 1)
  integer('sequences', sequences, 1)
  integer('maxBatch', maxBatch, 0)
  integer('processes', processes, 1)
  const { shape: _, ...native } = checkOptions(options)
  return engine().predictMemory(readModelConfig(dir), withReference(dir, native, readModelConfig), {
    promptTokens,
    maxNewTokens,
    sequences,
    maxBatch,
    processes,
  })
}

/**
 * Writes random weights as model.safetensors beside the config.json in `dir`. Matrices are normal with the config's
 * initializer_range, norms are 1, biases 0. The same seed gives the same bits on the same machine.
 */
export async function initializeModel(dir: string, seed: number): Promise<void> {
  text('dir', dir)
  integer('seed', seed, 0)
  const model = readModelConfig(dir)
  const dtype = modelDTypeOf(model.text)
  await engine().initialize(model, dtype, seed, withDtype(model.text, dtype))
}

/** Sets the number of threads that the engine uses in this process from its next call on; 0 restores the default. */
export function setEngineThreads(threads: number): void {
  integer('threads', threads, 0, 1024)
  engine().setThreads(threads)
}

/** Writes the accumulated gradients (float32, by the weights' names) as a safetensors file: for tests and debugging. */
export async function saveGradients(policy: Policy, file: string): Promise<void> {
  if (!(policy instanceof NativePolicy)) invalidValue('policy', policy, 'a policy from loadPolicy')
  return policy.saveGradients(file)
}

/** Writes the logits at the given positions, (rows × vocabulary) float32, as a safetensors file: for tests. */
export async function saveLogits(
  policy: Policy,
  sequences: PackedTokens,
  rowPositions: Int32Array,
  file: string,
): Promise<void> {
  if (!(policy instanceof NativePolicy)) invalidValue('policy', policy, 'a policy from loadPolicy')
  return policy.saveLogits(sequences, rowPositions, file)
}

/** Whether the libtorch that the engine was compiled against has CUDA. */
export function libtorchHasCuda(): boolean {
  return engine().libtorchCuda
}

/** The version of libtorch that the engine was compiled against. */
export function libtorchVersion(): string {
  return engine().libtorchVersion
}

// What bindings/engine.cpp exports. Handles are opaque.
type Handle = { readonly policy: unique symbol }

interface Engine extends EngineAddon, BroadcastAddon {
  readonly libtorchVersion: string
  readonly libtorchCuda: boolean
  readonly Control: new () => Control
  setThreads(threads: number): void
  initialize(model: ModelSource, dtype: ModelDType, seed: number, configText: string): Promise<void>
  predictMemory(model: ModelSource, options: object, shape: RunShape): Promise<MemoryPrediction>
  /** ignored: tensors that the engine does not use, as "FILE: NAME". */
  load(
    model: ModelSource,
    options: object,
    control: Control,
  ): Promise<{ handle: Handle; info: ModelInfo; ignored: readonly string[] }>
  dispose(handle: Handle): Promise<void>
  generate(
    handle: Handle,
    prompts: PackedTokens,
    sampling: object,
    control: Control,
  ): Promise<{
    tokenIds: Int32Array
    offsets: Int32Array
    logprobs: Float32Array
    stopped: Uint8Array
    cachedTokens: number
  }>
  logprobs(
    handle: Handle,
    sequences: PackedTokens,
    rowPositions: Int32Array,
    tokenIds: Int32Array,
    temperature: number,
    control: Control,
  ): Promise<LogprobRows>
  accumulate(
    handle: Handle,
    batch: MicroBatch,
    objective: Objective,
    control: Control,
  ): Promise<ObjectiveMetrics>
  step(handle: Handle, learningRate: number): Promise<StepResult>
  syncReference(handle: Handle, share: number): Promise<void>
  saveReference(handle: Handle, dir: string, configText: string): Promise<void>
  saveAdapter(handle: Handle, dir: string, configText: string): Promise<void>
  zeroGrad(handle: Handle): Promise<void>
  save(
    handle: Handle,
    dir: string,
    dtype: ModelDType,
    maxShardBytes: number,
    configText: string,
  ): Promise<void>
  saveLogits(handle: Handle, sequences: PackedTokens, rowPositions: Int32Array, file: string): Promise<void>
  saveState(handle: Handle, file: string): Promise<void>
  loadState(handle: Handle, file: string, control: Control): Promise<void>
  saveGradients(handle: Handle, file: string): Promise<void>
}

function engine(): Engine {
  return loadEngine() as Engine
}

class NativePolicy implements Policy {
  readonly info: ModelInfo
  readonly #addon: Engine
  readonly #handle: Handle
  readonly #model: ModelSource
  readonly #reference: ModelSource | undefined
  readonly #shape: AdapterShape | undefined
  readonly #device: Device
  /** Settles when the latest of the calls has ended. */
  #last: Promise<unknown> = Promise.resolve()
  #disposed: Promise<void> | undefined

  constructor(
    addon: Engine,
    handle: Handle,
    info: ModelInfo,
    model: ModelSource,
    more: { reference: ModelSource | undefined; shape: AdapterShape | undefined; device: Device },
  ) {
    this.#addon = addon
    this.#handle = handle
    this.#model = model
    this.#reference = more.reference
    this.#shape = more.shape
    this.#device = more.device
    this.info = info
  }

  async generate(
    prompts: PackedTokens,
    sampling: SamplingParams,
    options?: CallOptions,
  ): Promise<Completions> {
    packed('prompts', prompts)
    const native = checkSampling(sampling)
    const out = await this.#call(options, control =>
      this.#addon.generate(this.#handle, prompts, native, control),
    )
    return {
      tokens: { tokenIds: out.tokenIds, offsets: out.offsets },
      logprobs: out.logprobs,
      finishReasons: Array.from(out.stopped, stopped => (stopped ? 'stop' : 'length')),
      cachedTokens: out.cachedTokens,
    }
  }

  async logprobs(
    sequences: PackedTokens,
    rows: { readonly rowPositions: Int32Array; readonly tokenIds: Int32Array },
    temperature: number,
    options?: CallOptions,
  ): Promise<LogprobRows> {
    packed('sequences', sequences)
    typed('rowPositions', rows?.rowPositions, Int32Array)
    typed('tokenIds', rows.tokenIds, Int32Array, rows.rowPositions.length)
    range('temperature', temperature, 'in [1e-6, 1e6]', x => x >= 1e-6 && x <= 1e6)
    return this.#call(options, control =>
      this.#addon.logprobs(this.#handle, sequences, rows.rowPositions, rows.tokenIds, temperature, control),
    )
  }

  async accumulate(
    batch: MicroBatch,
    objective: Objective,
    options?: CallOptions,
  ): Promise<ObjectiveMetrics> {
    fields('batch', batch, batchFields)
    packed('sequences', batch.sequences)
    typed('rowPositions', batch.rowPositions, Int32Array)
    const rows = batch.rowPositions.length
    for (const [name, { dtype, required }] of entriesOf(rowArrays)) {
      if (!required && batch[name] === undefined) continue
      typed(name, batch[name], dtype === 'int32' ? Int32Array : Float32Array, rows)
    }
    validateObjective(objective)
    return this.#call(options, control => this.#addon.accumulate(this.#handle, batch, objective, control))
  }

  async step(learningRate: number): Promise<StepResult> {
    range('learningRate', learningRate, '≥ 0', x => x >= 0 && x < Infinity)
    return this.#call(undefined, () => this.#addon.step(this.#handle, learningRate))
  }

  async syncReference(share: number): Promise<void> {
    range('share', share, 'in (0, 1]', x => x > 0 && x <= 1)
    return this.#call(undefined, () => this.#addon.syncReference(this.#handle, share))
  }

  async saveReference(dir: string): Promise<void> {
    text('dir', dir)
    // If there is no reference, the engine reports it.
    const config = withDtype((this.#reference ?? this.#model).text, this.info.dtype)
    return this.#call(undefined, () => this.#addon.saveReference(this.#handle, dir, config))
  }

  async saveAdapter(dir: string, options: { readonly baseModel?: string } = {}): Promise<void> {
    text('dir', dir)
    fields('options', options, { baseModel: true })
    const { baseModel = path.resolve(this.#model.dir) } = options
    text('baseModel', baseModel)
    // Without an adapter the engine says that there is none.
    const config = this.#shape ? adapterConfigText(this.#shape, baseModel) : ''
    return this.#call(undefined, () => this.#addon.saveAdapter(this.#handle, dir, config))
  }

  get tensors(): readonly TensorInfo[] {
    return this.#addon.tensors(this.#handle)
  }

  async openGroup(options: GroupOptions): Promise<BroadcastGroup> {
    fields('options', options, groupFields)
    return openGroup(this.#addon, this.#handle, this.#device, options, (call, run) => this.#call(call, run))
  }

  async zeroGrad(): Promise<void> {
    return this.#call(undefined, () => this.#addon.zeroGrad(this.#handle))
  }

  async saveGradients(file: string): Promise<void> {
    text('file', file)
    return this.#call(undefined, () => this.#addon.saveGradients(this.#handle, file))
  }

  async save(dir: string, options: SaveOptions = {}): Promise<void> {
    text('dir', dir)
    fields('options', options, saveFields)
    const { dtype = this.info.dtype, maxShardBytes = 5e9 } = options
    oneOf('dtype', dtype, modelDTypes)
    integer('maxShardBytes', maxShardBytes, 1)
    const config = withDtype(this.#model.text, dtype)
    return this.#call(undefined, () => this.#addon.save(this.#handle, dir, dtype, maxShardBytes, config))
  }

  async saveLogits(sequences: PackedTokens, rowPositions: Int32Array, file: string): Promise<void> {
    packed('sequences', sequences)
    typed('rowPositions', rowPositions, Int32Array)
    text('file', file)
    return this.#call(undefined, () => this.#addon.saveLogits(this.#handle, sequences, rowPositions, file))
  }

  async saveState(file: string): Promise<void> {
    text('file', file)
    return this.#call(undefined, () => this.#addon.saveState(this.#handle, file))
  }

  async loadState(file: string, options: Pick<CallOptions, 'onProgress'> = {}): Promise<void> {
    text('file', file)
    fields('options', options, { onProgress: true })
    return this.#call(options, control => this.#addon.loadState(this.#handle, file, control))
  }

  dispose(): Promise<void> {
    this.#disposed ??= this.#last.then(() => this.#addon.dispose(this.#handle))
    return this.#disposed
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose()
  }

  /** Starts `body` after the earlier calls have ended, whether they succeeded or failed. */
  #call<T>(options: CallOptions = {}, run: (control: Control) => Promise<T>): Promise<T> {
    if (this.#disposed) throw new RapoError('ERR_RAPO_INVALID_ARGUMENT', 'the policy was disposed')
    checkCallOptions(options)
    const result = this.#last.then(() => runCall(new this.#addon.Control(), options, run))
    this.#last = result.catch(() => {})
    return result
  }
}

const adamwDefaults: AdamW = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0 }

// Unknown names are errors, so that a misspelt field does not silently become its default.
const optionFields: Record<keyof PolicyOptions, true> = {
  dtype: true,
  device: true,
  backend: true,
  trainable: true,
  referenceDir: true,
  lora: true,
  adapterDir: true,
  mergeAdapter: true,
  referenceAdapterDir: true,
  adamw: true,
  stateDtype: true,
  seed: true,
  maxGradNorm: true,
  headRows: true,
  cacheBytes: true,
  recompute: true,
  world: true,
  shard: true,
}
const loraFields: Record<keyof LoraOptions, true> = {
  r: true,
  loraAlpha: true,
  targetModules: true,
  useRslora: true,
  seed: true,
}
const groupFields: Record<keyof GroupOptions, true> = {
  backend: true,
  library: true,
  name: true,
  address: true,
  timeoutSeconds: true,
}
const saveFields: Record<keyof SaveOptions, true> = { dtype: true, maxShardBytes: true }
const batchFields: Record<keyof MicroBatch, true> = {
  sequences: true,
  rowPositions: true,
  ...mapRows(rowArrays, () => true as const),
}
const samplingFields: Record<keyof SamplingParams, true> = {
  n: true,
  maxNewTokens: true,
  temperature: true,
  topP: true,
  topK: true,
  minP: true,
  stopTokenIds: true,
  seed: true,
  maxBatch: true,
  maxNewTokensPerPrompt: true,
  turn: true,
  firstCompletion: true,
}

function checkSampling(sampling: SamplingParams) {
  fields('sampling', sampling, samplingFields)
  const {
    seed,
    temperature = 1,
    topP = 1,
    topK = 0,
    minP = 0,
    maxBatch = 0,
    firstCompletion = 0,
    turn = 0,
    maxNewTokensPerPrompt: limits = [],
    ...rest
  } = sampling
  integer('n', sampling.n, 1)
  integer('maxNewTokens', sampling.maxNewTokens, 1)
  range('temperature', temperature, '0 (greedy) or in [1e-6, 1e6]', x => x === 0 || (x >= 1e-6 && x <= 1e6))
  range('topP', topP, 'in (0, 1]', x => x > 0 && x <= 1)
  integer('topK', topK, 0)
  range('minP', minP, 'in [0, 1)', x => x >= 0 && x < 1)
  const seeds: readonly number[] = Array.isArray(seed) ? seed : [seed]
  for (const one of seeds) integer('seed', one, 0)
  integer('maxBatch', maxBatch, 0)
  integer('turn', turn, sampling.turn === undefined ? 0 : 1)
  if (!Array.isArray(limits)) invalidValue('maxNewTokensPerPrompt', limits, 'an array of numbers')
  for (const one of limits) integer('maxNewTokensPerPrompt', one, 1)
  integer('firstCompletion', firstCompletion, 0, 2 ** 52)
  if (!Array.isArray(sampling.stopTokenIds))
    invalidValue('stopTokenIds', sampling.stopTokenIds, 'an array of token ids')
  for (const id of sampling.stopTokenIds) integer('stopTokenIds', id, 0, 2 ** 31 - 1)
  return {
    ...rest,
    ...{ temperature, topP, topK, minP, maxBatch, firstCompletion, turn },
    maxNewTokensPerPrompt: Float64Array.from(limits),
    seeds: Float64Array.from(seeds),
    stopTokenIds: Int32Array.from(sampling.stopTokenIds),
  }
}

function packed(name: string, value: PackedTokens): void {
  if (typeof value !== 'object' || value === null) invalidValue(name, value, 'packed tokens')
  typed(`${name}.tokenIds`, value.tokenIds, Int32Array)
  typed(`${name}.offsets`, value.offsets, Int32Array)
}

function fields(name: string, value: object, known: object): void {
  if (typeof value !== 'object' || value === null) invalidValue(name, value, 'an object')
  for (const field of Object.keys(value)) {
    if (!(field in known)) {
      throw new RapoError(
        'ERR_RAPO_INVALID_ARGUMENT',
        `${name} has no field ${field}; its fields are ${Object.keys(known).join(', ')}`,
      )
    }
  }
}

function typed(
  name: string,
  value: unknown,
  type: Int32ArrayConstructor | Float32ArrayConstructor,
  length?: number,
): void {
  if (!(value instanceof type))
    invalidValue(name, Object.prototype.toString.call(value), `of type ${type.name}`)
  if (length !== undefined && value.length !== length) {
    invalidValue(name, `of length ${value.length}`, `${length}, as long as rowPositions`)
  }
}

function integer(name: string, value: unknown, least: number, most = Number.MAX_SAFE_INTEGER): void {
  const what =
    most === Number.MAX_SAFE_INTEGER ? `an integer ≥ ${least}` : `an integer in [${least}, ${most}]`
  range(name, value, what, x => Number.isSafeInteger(x) && x >= least && x <= most)
}

function range(name: string, value: unknown, what: string, fits: (x: number) => boolean): void {
  if (typeof value !== 'number' || !fits(value)) invalidValue(name, value, what)
}

function oneOf(name: string, value: unknown, names: readonly string[]): void {
  if (!names.includes(value as string)) invalidValue(name, value, `one of ${names.join(', ')}`)
}

function text(name: string, value: unknown): void {
  if (typeof value !== 'string' || value === '') invalidValue(name, value, 'a path')
}

/** What a command that loads a model may be given. */
export interface OpenPolicyOptions {
  /** Default: the engine's. */
  readonly loadPolicy?: LoadPolicy
  /** Told, in a text for people, that the model is being loaded, and its size. */
  readonly onNotice?: (text: string) => unknown
  /** Told a few times a second how many bytes of the files have been read, of how many, and what is being read. */
  readonly onLoading?: ((done: number, total: number, what: string) => void) | undefined
}

/** Loads a model with the engine, or with the loader given. threads: 0 leaves the engine's default. */
export async function openPolicy(
  dir: string,
  options: LoadOptions,
  threads: number,
  { loadPolicy: given, onNotice, onLoading }: OpenPolicyOptions = {},
): Promise<Policy> {
  if (given) return given(dir, options)
  await told(onNotice?.(describeLoading(dir, options)), options.signal)
  await setEngineThreads(threads)
  const { referenceDir } = options
  const bytes = weightsBytes(dir) + (referenceDir === undefined ? 0 : weightsBytes(referenceDir))
  return loadPolicy(dir, { ...options, ...inBytes(bytes, 'loading', onLoading) })
}

/** Progress of a call that reads `bytes` of files, whatever the call's own unit. */
export function inBytes(
  bytes: number,
  what: string,
  onLoading: OpenPolicyOptions['onLoading'],
): Pick<CallOptions, 'onProgress'> {
  if (!onLoading) return {}
  return {
    onProgress: (done, total) => onLoading(Math.round((bytes * done) / Math.max(1, total)), bytes, what),
  }
}

function describeLoading(
  dir: string,
  { dtype = 'float32', device = 'cpu', referenceDir }: LoadOptions,
): string {
  const others =
    referenceDir === undefined
      ? ''
      : referenceDir === dir
        ? ', and once more as the reference'
        : `, and the reference, ${weightsSize(referenceDir)} in ${referenceDir}`
  return `loading ${weightsSize(dir)} of weights from ${dir} to ${device} as ${dtype}${others} …`
}

const weightsSize = (dir: string) => byteSize(weightsBytes(dir))

/** Of the weights' files, those in sub-folders too. */
function weightsBytes(dir: string): number {
  const names = readdirSync(dir, { recursive: true }).map(String)
  const files = names.filter(name => name.endsWith('.safetensors') && !/(^|[\\/])rapo[\\/]/.test(name))
  return files.reduce((sum, name) => sum + statSync(path.join(dir, name)).size, 0)
}
