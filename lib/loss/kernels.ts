/**
 * The objective's loss and gradient for full logits, and log-prob gathering: the typed face of the kernels addon.
 * Needs no libtorch. N is the number of rows (completion tokens), V the vocabulary; row i of `logits` is the
 * distribution that `tokenIds[i]` was drawn from.
 */
import { RapoError } from '../base/errors.js'
import { type KernelsAddon, loadKernels } from '../setup/addons.js'
import {
  emptyMetrics,
  type Objective,
  type ObjectiveMetrics,
  readMetrics,
  validateObjective,
} from './objective.js'

/** What the numbers of the logits are stored as. */
export type LogitsDType = 'float32' | 'bfloat16' | 'float16'
/** Float32Array, or Uint16Array holding the bits of bfloat16 or float16 numbers. */
export type Logits = Float32Array | Uint16Array

/** Arrays are borrowed for the call. An entry a row unless it says otherwise. */
export interface LossBatch<L extends Logits = Logits> {
  readonly vocabSize: number
  /** Of logits and refLogits. Default float32. */
  readonly dtype?: LogitsDType
  /** (N × V) the policy's, before division by the temperature. */
  readonly logits: L
  /** (N × V) the reference's; left out without a penalty. */
  readonly refLogits?: L
  /** In [0, V). */
  readonly tokenIds: Int32Array | BigInt64Array
  /** n_t, mask × aggregation weight over the whole batch. 0 masks the row: nothing else in it is looked at. */
  readonly tokenWeights: Float32Array
  readonly advantages: Float32Array
  /** φ in [0, 1], for the forward penalties. Left out: 1. */
  readonly refWeights?: Float32Array
  /** log π_old(token). Left out: the policy's own, so that every ratio is 1. */
  readonly oldLogprobs?: Float32Array
  /** ≥ 0, what the policy term g is multiplied with (importanceWeights, topEntropyWeights). Left out: 1. */
  readonly policyWeights?: Float32Array
  /**
   * (B + 1) ascending from 0 to N: sequence b has the rows from entry b up to entry b + 1. For `gspo` alone; the unmasked
   * rows of a sequence must agree in tokenWeights, advantages and policyWeights.
   */
  readonly sequenceOffsets?: Int32Array
}

/**
 * Where the gradient goes: a new array of the logits' dtype, over the logits themselves, nowhere, or into an array
 * given (a Float32Array, or one like the logits).
 */
export type GradMode = 'new' | 'in-place' | 'none' | Logits

/** Where the work is done: `cuda` is CUDA device 0. kernelsInfo().cuda tells whether there is one, or why not. */
export type KernelDevice = 'cpu' | 'cuda' | `cuda:${number}`

/** Where a call is computed. */
export interface DeviceOptions {
  /**
   * Default cpu. On CUDA the arrays, which are in host memory, are copied there and back; policyLossOnDevice takes
   * arrays that are on the device already. Throws ERR_RAPO_DEVICE where there is no CUDA.
   */
  readonly device?: KernelDevice
}

/** What policyLoss is to return beside the loss, and where it is computed. */
export interface LossOptions<M extends GradMode = GradMode, P extends boolean = boolean>
  extends DeviceOptions {
  /** Default 'new'. */
  readonly grad?: M
  /** Also return each row's values. Default false. */
  readonly perToken?: P
}

/** An entry a row; 0 in masked rows. */
export interface PerToken {
  /** log p of the token. */
  readonly logprobs: Float32Array
  /** q of the token: the reference's log-prob after reweighting; 0 without a penalty. */
  readonly refLogprobs: Float32Array
  /** The penalty D. */
  readonly kl: Float32Array
  readonly entropy: Float32Array
  /** ρ; under `gspo` the sequence's ratio. */
  readonly ratio: Float32Array
  /** 0 not clipped, 1 cut off at the lower bound, 2 at the upper. */
  readonly clipped: Uint8Array
}

type GradOf<L, M> = M extends 'none' ? undefined : M extends Logits ? M : L

/** What policyLoss returns. */
export interface LossResult<G, P extends boolean> {
  readonly loss: number
  /** (N × V) ∂loss/∂logits. */
  readonly gradLogits: G
  readonly metrics: ObjectiveMetrics
  readonly perToken: P extends true ? PerToken : undefined
}

/** Of the calls that run off the main thread. */
export interface AsyncOptions {
  /** Aborting rejects with ERR_RAPO_ABORTED within a few rows' time. */
  readonly signal?: AbortSignal
}

interface RawControl {
  cancel(): void
}

interface RawOutputs extends Partial<PerToken> {
  gradLogits?: Logits | undefined
  gradDtype?: LogitsDType
}

/** An objective that the addon has read already. */
type RawObjective = { readonly __rawObjective: never }

interface RawGatherOutputs {
  logprobs?: Float32Array
  entropy?: Float32Array
  logSumExp?: Float32Array
}

/** The functions of bindings/kernels.cpp. */
interface RawKernels extends KernelsAddon {
  Control: new () => RawControl
  makeObjective(objective: Objective): RawObjective
  /** Objective, metrics in the order of ObjectiveMetrics, then kLossFields. */
  policyLoss(objective: Objective | RawObjective, metrics: Float64Array, ...fields: unknown[]): void
  policyLossAsync(
    batch: object,
    objective: Objective,
    outputs: RawOutputs,
    control: RawControl,
    device?: number,
  ): Promise<ObjectiveMetrics>
  gatherLogprobs(batch: object, outputs: RawGatherOutputs, device?: number): void
  gatherLogprobsAsync(
    batch: object,
    outputs: RawGatherOutputs,
    control: RawControl,
    device?: number,
  ): Promise<void>
  cudaInfo(): {
    available: boolean
    lacks: 'library' | 'driver' | 'device'
    reason: string
    searched: CudaPlace[]
    devices: CudaDevice[]
  }
  isa(): string
  isas(): string[]
  threads(): number
  setThreads(n: number): void
}

const addon = () => loadKernels() as RawKernels

/**
 * loss = −Σ n (w g − αD + βH) over the rows, w being policyWeights, and its gradient with respect to the policy's logits.
 * Losses, gradients and metrics of any split of a batch add up. The same bits for any number of threads.
 * Throws ERR_RAPO_INVALID_ARGUMENT (field, value, range) before anything is written; ERR_RAPO_NON_FINITE, naming the
 * first row with NaN, +inf or an infinite penalty, after which a gradient in place has destroyed the logits.
 */
export function policyLoss<L extends Logits, M extends GradMode = 'new', P extends boolean = false>(
  batch: LossBatch<L>,
  objective: Objective,
  options: LossOptions<M, P> = {},
): LossResult<GradOf<L, M>, P> {
  const { rows, dtype, outputs: o } = prepareLoss(batch, objective, options)
  // biome-ignore format: the order of kLossFields in bindings/kernels.cpp
  addon().policyLoss(rawObjective(objective), rawMetrics,
    rows, batch.vocabSize, dtype, batch.logits, batch.refLogits, batch.tokenIds, batch.tokenWeights,
    batch.advantages, batch.refWeights, batch.oldLogprobs, batch.policyWeights, batch.sequenceOffsets,
    o.gradLogits, o.gradDtype, o.logprobs, o.refLogprobs, o.kl, o.entropy, o.ratio, o.clipped, deviceNumber(options.device))
  return lossResult(o, options, readMetrics(rawMetrics))
}

/** policyLoss's; read out before the next call. */
const rawMetrics = new Float64Array(Object.keys(emptyMetrics).length)
const rawObjectives = new WeakMap<Objective, RawObjective>()

/** What can still change is read by the addon at every call. */
function rawObjective(objective: Objective): Objective | RawObjective {
  if (!Object.isFrozen(objective)) return objective
  let raw = rawObjectives.get(objective)
  if (!raw) {
    raw = addon().makeObjective(objective)
    rawObjectives.set(objective, raw)
  }
  return raw
}

/**
 * policyLoss off the main thread. Until it settles, leave the arrays alone: writing to them changes the result, and
 * transferring one to another thread frees memory in use. Arrays on resizable buffers throw.
 */
export async function policyLossAsync<
  L extends Logits,
  M extends GradMode = 'new',
  P extends boolean = false,
>(
  batch: LossBatch<L>,
  objective: Objective,
  options: LossOptions<M, P> & AsyncOptions = {},
): Promise<LossResult<GradOf<L, M>, P>> {
  const { signal, ...rest } = options
  const { rows, dtype, outputs } = prepareLoss(batch, objective, rest as LossOptions<M, P>)
  const call = { ...batch, rows, dtype }
  const metrics = await abortable(signal, [call, outputs], control =>
    addon().policyLossAsync(call, objective, outputs, control, deviceNumber(options.device)),
  )
  return lossResult(outputs, options, metrics)
}

/** Rows of logits, each a distribution over V words. */
export interface LogitRows {
  readonly vocabSize: number
  /** Default float32. */
  readonly dtype?: LogitsDType
  /** (N × V) */
  readonly logits: Logits
  /** τ in [1e-6, 1e6], by which the logits are divided. Default 1. */
  readonly temperature?: number
}

export interface GatherBatch extends LogitRows {
  /** (N) in [0, V) */
  readonly tokenIds: Int32Array | BigInt64Array
}

/** An entry a row. */
export interface GatherResult {
  /** log p of the token; −Infinity where its logit is. */
  readonly logprobs: Float32Array
  readonly entropy: Float32Array
  /** Of logits / temperature. */
  readonly logSumExp: Float32Array
}

/** Each row's log-prob of its token, entropy and log-sum-exp, in one pass. Throws as policyLoss does. */
export function gatherLogprobs(batch: GatherBatch, options: DeviceOptions = {}): GatherResult {
  const call = prepareGather(batch)
  addon().gatherLogprobs(call.batch, call.outputs, deviceNumber(options.device))
  return call.outputs
}

/** gatherLogprobs off the main thread; what policyLossAsync says of arrays goes here too. */
export async function gatherLogprobsAsync(
  batch: GatherBatch,
  options: AsyncOptions & DeviceOptions = {},
): Promise<GatherResult> {
  const call = prepareGather(batch)
  await gatherAsync(call, options)
  return call.outputs
}

function gatherAsync(
  { batch, outputs }: ReturnType<typeof prepareRows>,
  { signal, device }: AsyncOptions & DeviceOptions,
) {
  return abortable(signal, [batch, outputs], control =>
    addon().gatherLogprobsAsync(batch, outputs, control, deviceNumber(device)),
  )
}

/** (N) each row's entropy −Σ p log p, in nats. Throws as policyLoss does. */
export function entropy(rows: LogitRows, options: DeviceOptions = {}): Float32Array {
  const call = prepareRows(rows, 'entropy')
  addon().gatherLogprobs(call.batch, call.outputs, deviceNumber(options.device))
  return call.outputs.entropy!
}

/** entropy off the main thread; what policyLossAsync says of arrays goes here too. */
export async function entropyAsync(
  rows: LogitRows,
  options: AsyncOptions & DeviceOptions = {},
): Promise<Float32Array> {
  const call = prepareRows(rows, 'entropy')
  await gatherAsync(call, options)
  return call.outputs.entropy!
}

/** (N) each row's log Σ exp(logits / temperature). Throws as policyLoss does. */
export function logSumExp(rows: LogitRows, options: DeviceOptions = {}): Float32Array {
  const call = prepareRows(rows, 'logSumExp')
  addon().gatherLogprobs(call.batch, call.outputs, deviceNumber(options.device))
  return call.outputs.logSumExp!
}

/** logSumExp off the main thread; what policyLossAsync says of arrays goes here too. */
export async function logSumExpAsync(
  rows: LogitRows,
  options: AsyncOptions & DeviceOptions = {},
): Promise<Float32Array> {
  const call = prepareRows(rows, 'logSumExp')
  await gatherAsync(call, options)
  return call.outputs.logSumExp!
}

/** A CUDA device of this machine. */
export interface CudaDevice {
  readonly name: string
  /** Compute capability, as in 9.0. */
  readonly capability: string
  readonly multiprocessors: number
  /** Bytes. */
  readonly memory: number
}

/** A file in which the library of the CUDA kernels was looked for. */
export interface CudaPlace {
  readonly library: string
  /** Why it will not do; left out for the one in use. */
  readonly problem?: string
}

/** The CUDA devices, or what is missing and why. `searched` is in the order of the search (docs/cuda.md). */
export type CudaInfo =
  | {
      readonly available: true
      readonly devices: readonly CudaDevice[]
      readonly searched: readonly CudaPlace[]
    }
  | {
      readonly available: false
      /** The library of the kernels, NVIDIA's driver, or a device. */
      readonly lacks: 'library' | 'driver' | 'device'
      /** The same as a sentence, with what mends it. */
      readonly reason: string
      readonly searched: readonly CudaPlace[]
    }

/** What the kernels run on. */
export interface KernelsInfo {
  /** The instruction set in use; RAPO_KERNELS_ISA overrides the choice. */
  readonly isa: string
  /** Those that this machine can run, fastest first. */
  readonly isas: readonly string[]
  /** Threads that share a call's work, the calling one included. */
  readonly threads: number
  readonly cuda: CudaInfo
}

/** What the kernels run on. Throws ERR_RAPO_SETUP where their addon does not load. */
export function kernelsInfo(): KernelsInfo {
  const { available, lacks, reason, searched, devices } = addon().cudaInfo()
  return {
    isa: addon().isa(),
    isas: addon().isas(),
    threads: addon().threads(),
    cuda: available ? { available, devices, searched } : { available, lacks, reason, searched },
  }
}

/** The number of a CUDA device; undefined for the CPU. Throws ERR_RAPO_INVALID_ARGUMENT for anything else. */
export function deviceNumber(device: KernelDevice = 'cpu'): number | undefined {
  if (device === 'cpu') return undefined
  const match = /^cuda(?::(\d{1,3}))?$/.exec(device)
  if (!match) invalid(`device is ${device}, expected cpu, cuda or cuda: and a number`)
  return Number(match[1] ?? 0)
}

/** Threads for the calls to come, in [1, 1024]; 0 restores the default, one a core. */
export function setKernelThreads(threads: number): void {
  addon().setThreads(threads)
}

const batchFields = new Set<string>([
  'vocabSize',
  'dtype',
  'logits',
  'refLogits',
  'tokenIds',
  'tokenWeights',
  'advantages',
  'refWeights',
  'oldLogprobs',
  'policyWeights',
  'sequenceOffsets',
])

function prepareLoss(batch: LossBatch, objective: Objective, options: LossOptions) {
  validateObjective(objective)
  for (const field in batch) {
    if (!batchFields.has(field)) {
      invalid(`batch has no field ${field}; its fields are ${[...batchFields].join(', ')}`)
    }
  }
  const { grad = 'new', perToken = false } = options
  const { logits, dtype = 'float32' } = batch
  const rows = countRows(batch)
  const gradLogits = grad === 'none' ? undefined : gradArray(grad, logits)
  const gradDtype: LogitsDType = gradLogits instanceof Float32Array ? 'float32' : dtype
  const outputs: RawOutputs = { ...(perToken && perTokenArrays(rows)), gradLogits, gradDtype }
  return { rows, dtype, outputs }
}

/** The rest of the arrays is checked by the addon against this number. */
function countRows({ logits, tokenIds }: { logits: unknown; tokenIds: unknown }): number {
  checkLogits(logits)
  if (!(tokenIds instanceof Int32Array || tokenIds instanceof BigInt64Array)) {
    invalid('tokenIds must be an Int32Array or a BigInt64Array')
  }
  return tokenIds.length
}

function checkLogits(logits: unknown): asserts logits is Logits {
  if (!(logits instanceof Float32Array || logits instanceof Uint16Array)) {
    invalid('logits must be a Float32Array or a Uint16Array')
  }
}

function gradArray(grad: GradMode, logits: Logits): Logits {
  if (grad === 'in-place') return logits
  if (typeof grad === 'object') return grad
  if (grad !== 'new') invalid(`grad is ${grad}, expected new, in-place, none or a typed array`)
  return logits instanceof Float32Array ? new Float32Array(logits.length) : new Uint16Array(logits.length)
}

function perTokenArrays(rows: number): PerToken {
  return {
    logprobs: new Float32Array(rows),
    refLogprobs: new Float32Array(rows),
    kl: new Float32Array(rows),
    entropy: new Float32Array(rows),
    ratio: new Float32Array(rows),
    clipped: new Uint8Array(rows),
  }
}

function perTokenOf({ gradLogits: _, gradDtype: __, ...perToken }: RawOutputs): PerToken {
  return perToken as PerToken
}

function lossResult<G, P extends boolean>(
  outputs: RawOutputs,
  options: LossOptions,
  metrics: ObjectiveMetrics,
): LossResult<G, P> {
  return {
    loss: metrics.loss,
    gradLogits: outputs.gradLogits as G,
    metrics,
    perToken: (options.perToken ? perTokenOf(outputs) : undefined) as LossResult<G, P>['perToken'],
  }
}

function prepareGather({ vocabSize, dtype = 'float32', logits, tokenIds, temperature = 1 }: GatherBatch) {
  const rows = countRows({ logits, tokenIds })
  const outputs = {
    logprobs: new Float32Array(rows),
    entropy: new Float32Array(rows),
    logSumExp: new Float32Array(rows),
  }
  return { batch: { rows, vocabSize, dtype, logits, tokenIds, temperature }, outputs }
}

function prepareRows(
  { vocabSize, dtype = 'float32', logits, temperature = 1 }: LogitRows,
  output: 'entropy' | 'logSumExp',
) {
  checkLogits(logits)
  if (!Number.isSafeInteger(vocabSize) || vocabSize < 1 || logits.length % vocabSize !== 0) {
    invalid(`logits has ${logits.length} elements, expected whole rows of vocabSize = ${vocabSize}`)
  }
  const rows = logits.length / vocabSize
  const outputs: RawGatherOutputs = { [output]: new Float32Array(rows) }
  return { batch: { rows, vocabSize, dtype, logits, temperature }, outputs }
}

async function abortable<T>(
  signal: AbortSignal | undefined,
  arguments_: readonly object[],
  start: (control: RawControl) => Promise<T>,
): Promise<T> {
  const arrays = arguments_.flatMap(object => Object.entries(object)).filter(([, x]) => ArrayBuffer.isView(x))
  for (const [field, { buffer }] of arrays as [
    string,
    ArrayBufferView & { buffer: { resizable?: boolean } },
  ][]) {
    if (buffer.resizable) invalid(`${field} is on a resizable buffer, which could shrink while the call runs`)
  }
  if (signal?.aborted) throw aborted(signal)
  const control = new (addon().Control)()
  const cancel = () => control.cancel()
  signal?.addEventListener('abort', cancel, { once: true })
  try {
    return await start(control)
  } catch (error) {
    if (signal?.aborted && error instanceof RapoError && error.code === 'ERR_RAPO_ABORTED')
      throw aborted(signal)
    throw error
  } finally {
    signal?.removeEventListener('abort', cancel)
  }
}

function aborted(signal: AbortSignal): RapoError {
  return new RapoError('ERR_RAPO_ABORTED', 'the call was aborted', { cause: signal.reason })
}

function invalid(message: string): never {
  throw new RapoError('ERR_RAPO_INVALID_ARGUMENT', message)
}
