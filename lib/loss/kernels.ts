/**
 * The objective's loss and gradient for full logits, and log-prob gathering: the typed face of the kernels addon. Needs no
 * libtorch. N is the number of rows (completion tokens), V the vocabulary. Row i of `logits` must be the logits that predicted
 * `tokenIds[i]`.
 */
import * as calls from '../base/call.js'
import { invalid } from '../base/errors.js'
import { type KernelsAddon, loadKernels } from '../setup/addons.js'
import { type Objective, type ObjectiveMetrics, validateObjective } from './objective.js'
import { type LossRows, mapRows, type PerToken, rowArrays, rowOutputs } from './rows.js'

export type { LossRows, PerToken } from './rows.js'

/** The number format of the logits. */
export type LogitsDType = 'float32' | 'bfloat16' | 'float16'
/** Float32Array, or Uint16Array with the bits of bfloat16 or float16 numbers. */
export type Logits = Float32Array | Uint16Array

/** A batch of rows. The matrices are borrowed for the call; the other arrays are copied. */
export interface LossBatch<L extends Logits = Logits> extends LossRows {
  readonly vocabSize: number
  /** The format of logits and refLogits. Default float32. */
  readonly dtype?: LogitsDType
  /** (N × V) logits of the policy, before division by the temperature. */
  readonly logits: L
  /** (N × V) logits of the reference; left out without a penalty. */
  readonly refLogits?: L
  /**
   * (B + 1) ascending from 0 to N: sequence b has the rows from entry b up to entry b + 1. For `gspo` only. The unmasked rows
   * of a sequence must have equal tokenWeights, advantages and policyWeights.
   */
  readonly sequenceOffsets?: Int32Array
}

/**
 * Where the gradient is written: into a new array of the logits' dtype, over the logits themselves, nowhere, or into a given
 * array (a Float32Array, or one of the logits' type).
 */
export type GradMode = 'new' | 'in-place' | 'none' | Logits

/** The device that computes; `cuda` is CUDA device 0. kernelsInfo().cuda says whether there is one, or why not. */
export type KernelDevice = 'cpu' | 'cuda' | `cuda:${number}`

/** The device of a call. */
export interface DeviceOptions {
  /**
   * Default cpu. On CUDA the arrays, which are in host memory, are copied to the device and back; policyLossOnDevice takes
   * arrays that are on the device already. Throws ERR_RAPO_DEVICE if there is no CUDA.
   */
  readonly device?: KernelDevice
}

/** Options of policyLoss: further results, and the device. */
export interface LossOptions<M extends GradMode = GradMode, P extends boolean = boolean>
  extends DeviceOptions {
  /** Default 'new'. */
  readonly grad?: M
  /** Also return each row's values. Default false. */
  readonly perToken?: P
}

type GradOf<L, M> = M extends 'none' ? undefined : M extends Logits ? M : L

/** The result of policyLoss. */
export interface LossResult<G, P extends boolean> {
  readonly loss: number
  /** (N × V) ∂loss/∂logits. */
  readonly gradLogits: G
  readonly metrics: ObjectiveMetrics
  readonly perToken: P extends true ? PerToken : undefined
}

/** Options of the calls that run off the main thread. */
export interface AsyncOptions {
  /** Aborting rejects with the signal's reason, within the time of a few rows. An abort that comes too late changes nothing. */
  readonly signal?: AbortSignal
}

/** The argument of a call of the addon: one object, made for the call. */
type RawCall = Readonly<Record<string, unknown>>

/** The functions of bindings/kernels.cpp. */
interface RawKernels extends KernelsAddon {
  Control: new () => calls.Control
  policyLoss(call: RawCall): ObjectiveMetrics
  policyLossAsync(call: RawCall): Promise<ObjectiveMetrics>
  gatherLogprobs(call: RawCall): void
  gatherLogprobsAsync(call: RawCall): Promise<void>
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
 * loss = −Σ n (w g − αD + βH) over the rows, where w are the policyWeights, and the loss's gradient with respect to the
 * policy's logits. Losses, gradients and metrics of the parts of a batch add up. The result has the same bits for any number of
 * threads.
 *
 * Throws ERR_RAPO_INVALID_ARGUMENT (field, value, range) before anything is written. ERR_RAPO_NON_FINITE names the first row
 * with NaN, +inf or an infinite penalty; a gradient in place has then destroyed the logits.
 */
export function policyLoss<L extends Logits, M extends GradMode = 'new', P extends boolean = false>(
  batch: LossBatch<L>,
  objective: Objective,
  options: LossOptions<M, P> = {},
): LossResult<GradOf<L, M>, P> {
  const { call, result } = prepareLoss(batch, objective, options)
  return result(addon().policyLoss(call))
}

/**
 * policyLoss off the main thread. Until it settles, logits, refLogits and a given gradient array belong to the call: writing to
 * them gives unspecified numbers. The other arrays are copied before this function returns.
 *
 * Do not transfer the buffers of these three arrays (postMessage, structuredClone, ArrayBuffer.transfer) before the call has
 * settled. Node-API cannot keep the memory of a transferred buffer, and the new owner may free the memory while the call uses
 * it. If the process still runs, the call rejects with ERR_RAPO_INVALID_ARGUMENT. A SharedArrayBuffer cannot be transferred. An
 * array on a resizable buffer is refused, since the buffer could shrink.
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
  const { call, result } = prepareLoss(batch, objective, options)
  return result(await abortable(options.signal, call, call => addon().policyLossAsync(call)))
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

/** Results of gatherLogprobs, with one entry per row. */
export interface GatherResult {
  /** log p of the token; −Infinity if the token's logit is −Infinity. */
  readonly logprobs: Float32Array
  readonly entropy: Float32Array
  /** log Σ exp(logits / temperature). */
  readonly logSumExp: Float32Array
}

/** The log-prob of each row's token, the row's entropy and its log-sum-exp, in one pass. Throws as policyLoss does. */
export function gatherLogprobs(batch: GatherBatch, options: DeviceOptions = {}): GatherResult {
  const { call, outputs } = prepareGather(batch, options)
  addon().gatherLogprobs(call)
  return outputs
}

/** gatherLogprobs off the main thread. Its arrays follow the rules of policyLossAsync. */
export async function gatherLogprobsAsync(
  batch: GatherBatch,
  options: AsyncOptions & DeviceOptions = {},
): Promise<GatherResult> {
  const { call, outputs } = prepareGather(batch, options)
  await abortable(options.signal, call, call => addon().gatherLogprobsAsync(call))
  return outputs
}

/** (N) each row's entropy −Σ p log p, in nats. Throws as policyLoss does. */
export function entropy(rows: LogitRows, options: DeviceOptions = {}): Float32Array {
  return oneOfRows('entropy', rows, options)
}

/** entropy off the main thread. Its arrays follow the rules of policyLossAsync. */
export async function entropyAsync(
  rows: LogitRows,
  options: AsyncOptions & DeviceOptions = {},
): Promise<Float32Array> {
  return oneOfRowsAsync('entropy', rows, options)
}

/** (N) each row's log Σ exp(logits / temperature). Throws as policyLoss does. */
export function logSumExp(rows: LogitRows, options: DeviceOptions = {}): Float32Array {
  return oneOfRows('logSumExp', rows, options)
}

/** logSumExp off the main thread. Its arrays follow the rules of policyLossAsync. */
export async function logSumExpAsync(
  rows: LogitRows,
  options: AsyncOptions & DeviceOptions = {},
): Promise<Float32Array> {
  return oneOfRowsAsync('logSumExp', rows, options)
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

/** A file that was tried as the library of the CUDA kernels. */
export interface CudaPlace {
  readonly library: string
  /** Why the file cannot be used; left out for the library in use. */
  readonly problem?: string
}

/** The CUDA devices, or what is missing and why. `searched` lists the files in the order of the search (docs/cuda.md). */
export type CudaInfo =
  | {
      readonly available: true
      readonly devices: readonly CudaDevice[]
      readonly searched: readonly CudaPlace[]
    }
  | {
      readonly available: false
      /** What is missing: the library of the kernels, NVIDIA's driver, or a device. */
      readonly lacks: 'library' | 'driver' | 'device'
      /** The same as a sentence that says what to do. */
      readonly reason: string
      readonly searched: readonly CudaPlace[]
    }

/** What the kernels run on. */
export interface KernelsInfo {
  /** The instruction set in use; RAPO_KERNELS_ISA overrides the choice. */
  readonly isa: string
  /** The instruction sets that this machine can run, fastest first. */
  readonly isas: readonly string[]
  /** Number of threads that share a call's work, the calling thread included. */
  readonly threads: number
  readonly cuda: CudaInfo
}

/** The instruction set, threads and devices of the kernels. Throws ERR_RAPO_SETUP if the addon cannot be loaded. */
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

/** Sets the number of threads for later calls, in [1, 1024]; 0 restores the default, one per core. */
export function setKernelThreads(threads: number): void {
  addon().setThreads(threads)
}

const batchFields = new Set([
  'vocabSize',
  'dtype',
  'logits',
  'refLogits',
  ...Object.keys(rowArrays),
  'sequenceOffsets',
])

/** The argument for the addon, and a function that makes the result of the addon's answer. */
function prepareLoss<L extends Logits, M extends GradMode, P extends boolean>(
  batch: LossBatch<L>,
  objective: Objective,
  { grad = 'new' as M, perToken, device }: LossOptions<M, P>,
) {
  validateObjective(objective)
  const given = { ...batch } // a getter runs only once
  for (const field of Object.keys(given)) {
    if (!batchFields.has(field)) {
      invalid(`batch has no field ${field}; its fields are ${[...batchFields].join(', ')}`)
    }
  }
  const { logits, tokenIds, dtype = 'float32' } = given
  const rows = countRows(logits, tokenIds)
  const gradLogits = grad === 'none' ? undefined : gradArray(grad, logits)
  const values = perToken ? perTokenArrays(rows) : undefined
  const call = {
    ...given,
    ...values,
    objective,
    rows,
    dtype,
    gradLogits,
    gradDtype: gradLogits instanceof Float32Array ? 'float32' : dtype,
    gradIsNew: grad === 'new',
    device: deviceNumber(device),
  }
  const result = (metrics: ObjectiveMetrics) =>
    ({ loss: metrics.loss, gradLogits, metrics, perToken: values }) as unknown as LossResult<GradOf<L, M>, P>
  return { call, result }
}

/** The addon checks the lengths of the other arrays against this number. */
function countRows(logits: unknown, tokenIds: unknown): number {
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
  return mapRows(rowOutputs, (_, type) =>
    type === 'uint8' ? new Uint8Array(rows) : new Float32Array(rows),
  ) as Record<keyof PerToken, Float32Array & Uint8Array>
}

function prepareGather(batch: GatherBatch, { device }: DeviceOptions) {
  const { vocabSize, dtype = 'float32', logits, tokenIds, temperature = 1 } = batch
  const rows = countRows(logits, tokenIds)
  const outputs = {
    logprobs: new Float32Array(rows),
    entropy: new Float32Array(rows),
    logSumExp: new Float32Array(rows),
  }
  const call = {
    rows,
    vocabSize,
    dtype,
    logits,
    tokenIds,
    temperature,
    ...outputs,
    device: deviceNumber(device),
  }
  return { call, outputs }
}

type RowValue = 'entropy' | 'logSumExp'

function oneOfRows(output: RowValue, rows: LogitRows, options: DeviceOptions): Float32Array {
  const { call, values } = prepareRows(output, rows, options)
  addon().gatherLogprobs(call)
  return values
}

async function oneOfRowsAsync(
  output: RowValue,
  rows: LogitRows,
  options: AsyncOptions & DeviceOptions,
): Promise<Float32Array> {
  const { call, values } = prepareRows(output, rows, options)
  await abortable(options.signal, call, call => addon().gatherLogprobsAsync(call))
  return values
}

function prepareRows(output: RowValue, batch: LogitRows, { device }: DeviceOptions) {
  const { vocabSize, dtype = 'float32', logits, temperature = 1 } = batch
  checkLogits(logits)
  if (!Number.isSafeInteger(vocabSize) || vocabSize < 1 || logits.length % vocabSize !== 0) {
    invalid(`logits has ${logits.length} elements, expected whole rows of vocabSize = ${vocabSize}`)
  }
  const rows = logits.length / vocabSize
  const values = new Float32Array(rows)
  const call = { rows, vocabSize, dtype, logits, temperature, [output]: values, device: deviceNumber(device) }
  return { call, values }
}

/** Runs an asynchronous call of the addon; the signal cancels it. */
async function abortable<T>(
  signal: AbortSignal | undefined,
  call: RawCall,
  start: (call: RawCall) => Promise<T>,
): Promise<T> {
  const checkBorrowed = watchBorrowed(call)
  calls.checkCallOptions({ signal })
  try {
    return await calls.runCall(new (addon().Control)(), { signal }, control => start({ ...call, control }))
  } finally {
    checkBorrowed()
  }
}

/**
 * Refuses arrays that could shrink during an asynchronous call. The returned function throws if one of them has been detached
 * since.
 */
function watchBorrowed(call: RawCall): () => void {
  const borrowed = (['logits', 'refLogits', 'gradLogits'] as const).flatMap(field => {
    const array = call[field]
    if (!ArrayBuffer.isView(array)) return []
    if ((array.buffer as { resizable?: boolean }).resizable) {
      invalid(`${field} is on a resizable buffer, which could shrink while the call runs`)
    }
    return [{ field, array, bytes: array.byteLength }]
  })
  return () => {
    const moved = borrowed.find(({ array, bytes }) => array.byteLength < bytes)
    if (moved) invalid(`${moved.field} was transferred elsewhere while the call ran: its result is void`)
  }
}
