/**
 * Arrays in the memory of a CUDA device, and the kernels on them. A trainer whose tensors are on the device needs no copies.
 * Every call throws ERR_RAPO_DEVICE, with the reason, if there is no CUDA.
 */
import { invalid } from '../base/errors.js'
import { type KernelsAddon, loadKernels } from '../setup/addons.js'
import { deviceNumber, type KernelDevice, type LogitsDType, type LossResult } from './kernels.js'
import { type Objective, type ObjectiveMetrics, validateObjective } from './objective.js'
import { type LossRows, mapRows, type PerToken, rowArrays, rowOutputs } from './rows.js'

/** Element types. A Uint16Array holds the bits of bfloat16 and float16 numbers. */
const arrays = {
  float32: Float32Array,
  bfloat16: Uint16Array,
  float16: Uint16Array,
  int32: Int32Array,
  uint8: Uint8Array,
} as const
/** The type of a DeviceArray's elements. */
export type DeviceDType = keyof typeof arrays
/** Host arrays that a DeviceArray is filled from and read into. */
export type HostArray = Float32Array | Uint16Array | Int32Array | Uint8Array

/** DLPack's DLDataTypeCode, and bits. */
const dlpackTypes = {
  float32: { code: 2, bits: 32 },
  bfloat16: { code: 4, bits: 16 },
  float16: { code: 2, bits: 16 },
  int32: { code: 0, bits: 32 },
  uint8: { code: 1, bits: 8 },
} as const

/** The fields of a DLPack DLTensor. Strides are in elements. */
export interface DLTensor {
  /** The address of the first element; DLPack's data + byte_offset. */
  readonly data: bigint
  /** kDLCUDA is 2. */
  readonly device: { readonly type: 2; readonly id: number }
  readonly dtype: { readonly code: number; readonly bits: number; readonly lanes: 1 }
  readonly shape: readonly number[]
  readonly strides: readonly number[]
}

interface RawMemory {
  readonly address: bigint
  dispose(): void
}

interface RawCuda extends KernelsAddon {
  DeviceMemory: new (device: number, bytes: number) => RawMemory
  cudaMemory(device: number): { free: number; total: number }
  deviceUpload(device: number, address: bigint, array: HostArray, stream: bigint): void
  deviceDownload(device: number, address: bigint, array: HostArray, stream: bigint): void
  policyLossOnDevice(call: RawCall): ObjectiveMetrics
  policyLossOnDeviceAsync(call: RawCall): Promise<ObjectiveMetrics>
  fusedHeadWorkspace(call: RawCall): number
  fusedHeadLossOnDevice(call: RawCall): ObjectiveMetrics
  fusedHeadLossOnDeviceAsync(call: RawCall): Promise<ObjectiveMetrics>
  gatherLogprobsOnDevice(call: RawCall): void
}
/** The argument of a native call, one object for each call: addresses, sizes and strides. */
type RawCall = Readonly<Record<string, unknown>>

const addon = () => loadKernels() as RawCuda

/** One allocation, shared by an array and its views. */
interface Memory {
  readonly raw?: RawMemory
  disposed: boolean
  /** Number of calls in progress that use the memory. */
  inUse: number
}

/** The stream of a call. */
export interface StreamOptions {
  /** A cudaStream_t as a number; 0 is the default stream. */
  readonly stream?: bigint
}

/**
 * An array of a shape on a CUDA device. The rows of a matrix may lie apart; all other arrays have no gaps, last dimension
 * first. dispose() frees what `allocate` and `from` made (`using` calls it). V8 knows the size, so that forgotten arrays are
 * collected.
 */
export class DeviceArray {
  readonly dtype: DeviceDType
  readonly shape: readonly number[]
  /** In elements. */
  readonly strides: readonly number[]
  /** Number of the CUDA device. */
  readonly device: number
  readonly #memory: Memory
  readonly #address: bigint

  private constructor(
    memory: Memory,
    address: bigint,
    dtype: DeviceDType,
    shape: readonly number[],
    strides: readonly number[],
    device: number,
  ) {
    this.#memory = memory
    this.#address = address
    this.dtype = dtype
    this.shape = Object.freeze([...shape])
    this.strides = Object.freeze([...strides])
    this.device = device
  }

  /** Allocates memory of unspecified content. Throws ERR_RAPO_OUT_OF_MEMORY if the device has too little. */
  static allocate(
    dtype: DeviceDType,
    shape: readonly number[],
    { device = 'cuda' }: { device?: KernelDevice } = {},
  ): DeviceArray {
    checkDType(dtype)
    checkShape(shape)
    const number = cudaNumber(device)
    const raw = new (addon().DeviceMemory)(number, size(shape) * bytesOf(dtype))
    const memory = { raw, disposed: false, inUse: 0 }
    return new DeviceArray(memory, raw.address, dtype, shape, denseStrides(shape), number)
  }

  /** A copy of an array; shape: one dimension unless given; dtype: float32, int32 or uint8 by the array's kind. */
  static from(
    array: HostArray,
    options: { dtype?: DeviceDType; shape?: readonly number[]; device?: KernelDevice } & StreamOptions = {},
  ): DeviceArray {
    const { dtype = naturalDType(array), shape = [array.length], device = 'cuda', stream } = options
    const result = DeviceArray.allocate(dtype, shape, { device })
    try {
      result.upload(array, stream === undefined ? {} : { stream })
    } catch (error) {
      result.dispose()
      throw error
    }
    return result
  }

  /**
   * Memory of another owner, described as in DLPack. The owner must keep the memory while the array is used; dispose() does not
   * free it.
   */
  static wrap(tensor: DLTensor): DeviceArray {
    const { data, device, dtype, shape, strides } = tensor
    if (device.type !== 2) invalid(`device.type is ${device.type}, expected 2, CUDA`)
    const found = Object.entries(dlpackTypes).find(
      ([, type]) => type.code === dtype.code && type.bits === dtype.bits,
    )
    if (!found || dtype.lanes !== 1) {
      invalid(
        `dtype has code ${dtype.code}, bits ${dtype.bits} and lanes ${dtype.lanes}, which no kernel takes`,
      )
    }
    const name = found[0] as DeviceDType
    checkShape(shape)
    checkStrides(shape, strides)
    if (typeof data !== 'bigint' || data < 0n || data % BigInt(bytesOf(name)) !== 0n) {
      invalid(`data is ${data}, expected an address that is a multiple of ${bytesOf(name)}`)
    }
    const number = cudaNumber(`cuda:${device.id}`)
    return new DeviceArray({ disposed: false, inUse: 0 }, data, name, shape, strides, number)
  }

  /** Number of elements. */
  get length(): number {
    return size(this.shape)
  }

  /** Address of the first element. Throws ERR_RAPO_INVALID_ARGUMENT once disposed. */
  get pointer(): bigint {
    if (this.#memory.disposed) invalid('the device array has been disposed')
    return this.#address
  }

  /** Whether all elements lie one after another. */
  get dense(): boolean {
    return this.strides.every((stride, i) => stride === denseStrides(this.shape)[i])
  }

  /** The array as a DLPack DLTensor, for libraries that accept one. */
  toDLPack(): DLTensor {
    const { code, bits } = dlpackTypes[this.dtype]
    return {
      data: this.pointer,
      device: { type: 2, id: this.device },
      dtype: { code, bits, lanes: 1 },
      shape: this.shape,
      strides: this.strides,
    }
  }

  /** A view of the same memory from an element on, in another shape. Disposing of either disposes of both. */
  view(
    start: number,
    shape: readonly number[],
    strides: readonly number[] = denseStrides(shape),
  ): DeviceArray {
    checkShape(shape)
    checkStrides(shape, strides)
    const last = size(shape) === 0 ? 0 : shape.reduce((sum, n, i) => sum + (n - 1) * strides[i]!, start + 1)
    const own = this.shape.reduce((sum, n, i) => sum + (n - 1) * this.strides[i]!, 1)
    if (!Number.isSafeInteger(start) || start < 0 || last > (this.length === 0 ? 0 : own)) {
      invalid(`a view from ${start} to ${last} is outside the array's ${own} elements`)
    }
    const address = this.pointer + BigInt(start) * BigInt(bytesOf(this.dtype))
    return new DeviceArray(this.#memory, address, this.dtype, shape, strides, this.device)
  }

  /** Copies a typed array of the same kind and length to the device, and waits. Returns this. */
  upload(from: HostArray, { stream = 0n }: StreamOptions = {}): this {
    this.#checkCopy(from)
    addon().deviceUpload(this.device, this.pointer, from, stream)
    return this
  }

  /** Copies the elements to host memory, into `to` or a new array, and waits. */
  download<A extends HostArray = HostArray>({ to, stream = 0n }: { to?: A } & StreamOptions = {}): A {
    const result = to ?? (new arrays[this.dtype](this.length) as A)
    this.#checkCopy(result)
    addon().deviceDownload(this.device, this.pointer, result, stream)
    return result
  }

  /** Frees the memory, also that of its views. A second call does nothing. */
  dispose(): void {
    if (this.#memory.inUse > 0) invalid('the device array is in use by a call that has not settled')
    this.#memory.raw?.dispose()
    this.#memory.disposed = true
  }

  /** dispose(), for `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  /** Marks the array as used by a call off the main thread. The returned function ends the use. */
  static hold(held: readonly DeviceArray[]): () => void {
    for (const array of held) array.#memory.inUse++
    return () => {
      for (const array of held) array.#memory.inUse--
    }
  }

  #checkCopy(array: HostArray): void {
    if (!(array instanceof arrays[this.dtype])) {
      invalid(`the array must be a ${arrays[this.dtype].name}, for ${this.dtype}`)
    }
    if (array.length !== this.length) {
      invalid(`the array has ${array.length} elements, the device array ${this.length}`)
    }
    if (!this.dense) invalid('rows that lie apart cannot be copied at once: copy a view of each')
  }
}

/** Free and total bytes of a CUDA device. */
export function deviceMemory(device: KernelDevice = 'cuda'): { free: number; total: number } {
  return addon().cudaMemory(cudaNumber(device))
}

/** The arrays of LossBatch with one entry per row, on one device. tokenIds is int32, the others float32. */
export type DeviceRows = { readonly [K in keyof LossRows]: DeviceArray } & {
  /** (B + 1) int32 */
  readonly sequenceOffsets?: DeviceArray
}

/** As LossBatch, on one device. Rows of the two matrices may lie apart. */
export interface DeviceLossBatch extends DeviceRows {
  /** (N × V) float32, bfloat16 or float16 */
  readonly logits: DeviceArray
  /** (N × V) of the same dtype */
  readonly refLogits?: DeviceArray
}

/** Arrays that receive results: (N) float32 each, `clipped` uint8. Masked rows get 0. */
export type DevicePerToken = Partial<Record<keyof PerToken, DeviceArray>>

/** The outputs and the stream of policyLossOnDevice. */
export interface DeviceLossOptions extends StreamOptions {
  /**
   * `in-place` (default) writes the gradient over the logits; `none` computes the value alone. An array (N × V) of the logits'
   * dtype or float32 receives the gradient.
   */
  readonly grad?: 'in-place' | 'none' | DeviceArray
  readonly perToken?: DevicePerToken
}

/** The host's result of policyLossOnDevice. */
export type DeviceLossResult = Pick<LossResult<never, false>, 'loss' | 'metrics'>

/**
 * policyLoss on arrays of a device. Returns when the results are there. After ERR_RAPO_INVALID_ARGUMENT nothing has been
 * written. After ERR_RAPO_NON_FINITE the gradient of rows without a fault is written; the named row still holds its logits.
 */
export function policyLossOnDevice(
  batch: DeviceLossBatch,
  objective: Objective,
  options: DeviceLossOptions = {},
): DeviceLossResult {
  const metrics = addon().policyLossOnDevice(lossCall(batch, objective, options))
  return { loss: metrics.loss, metrics }
}

/**
 * policyLossOnDevice off the main thread. Its arrays cannot be disposed of until it has settled. Do not write to them before
 * that: the device checks token ids and offsets once and then uses them as indices.
 */
export async function policyLossOnDeviceAsync(
  batch: DeviceLossBatch,
  objective: Objective,
  options: DeviceLossOptions = {},
): Promise<DeviceLossResult> {
  const call = lossCall(batch, objective, options)
  return settled(addon().policyLossOnDeviceAsync(call), { ...batch, ...options, ...options.perToken })
}

/** The head's inputs, on one device: logits = hidden × weightᵀ. Rows of the matrices may lie apart. */
export interface DeviceHeadBatch extends DeviceRows {
  /** (N × C) float32 or bfloat16; masked rows are not read */
  readonly hidden: DeviceArray
  /** (V × C) of the same dtype, as those of the reference */
  readonly weight: DeviceArray
  /** (N × C′); left out if the penalty is none */
  readonly refHidden?: DeviceArray
  /** (V × C′) */
  readonly refWeight?: DeviceArray
}

/** The outputs, the stream and the chunks of fusedHeadLossOnDevice. */
export interface FusedHeadOptions extends StreamOptions {
  /** (N × C) of hidden's dtype or float32: ∂loss/∂hidden is written here. It may be `hidden` itself. */
  readonly gradHidden?: DeviceArray
  /** (V × C) float32: ∂loss/∂weight is added to what is here. */
  readonly gradWeight?: DeviceArray
  /**
   * Number of rows in a chunk. The device holds the logits of policy and reference for one chunk at a time. Default: at most
   * 4096, and no more than the workspace or half of the free memory holds. The sums over chunks are float32: the same number
   * gives the same bits, another number gives other roundings.
   */
  readonly chunkRows?: number
  /**
   * uint8, with as many bytes as fusedHeadWorkspace returns, aligned to 256. Default: allocated for the call, which waits for
   * the device.
   */
  readonly workspace?: DeviceArray
  readonly perToken?: DevicePerToken
}

/**
 * The loss of a model's head: policyLoss of the logits hidden × weightᵀ (and refHidden × refWeightᵀ), with gradients with
 * respect to hidden and weight, without an (N × V) array. cuBLASLt computes the products with float32 sums. Logits and their
 * gradient are rounded to hidden's dtype. Returns when the results are there.
 *
 * Throws ERR_RAPO_INVALID_ARGUMENT (shape, dtype, device, an entry out of range) and ERR_RAPO_DEVICE (no CUDA, or no cuBLASLt)
 * before anything is written. Throws ERR_RAPO_OUT_OF_MEMORY if a chunk does not fit. ERR_RAPO_NON_FINITE names the row; the
 * gradients then hold unspecified values.
 */
export function fusedHeadLossOnDevice(
  batch: DeviceHeadBatch,
  objective: Objective,
  options: FusedHeadOptions = {},
): DeviceLossResult {
  const metrics = addon().fusedHeadLossOnDevice(headCall(batch, objective, options))
  return { loss: metrics.loss, metrics }
}

/** Bytes of a workspace for fusedHeadLossOnDevice with chunks of so many rows of the batch. */
export function fusedHeadWorkspace(
  batch: DeviceHeadBatch,
  objective: Objective,
  { chunkRows }: { readonly chunkRows: number },
): number {
  return addon().fusedHeadWorkspace(headCall(batch, objective, { chunkRows }))
}

/** fusedHeadLossOnDevice off the main thread. Its arrays follow the rules of policyLossOnDeviceAsync. */
export async function fusedHeadLossOnDeviceAsync(
  batch: DeviceHeadBatch,
  objective: Objective,
  options: FusedHeadOptions = {},
): Promise<DeviceLossResult> {
  const call = headCall(batch, objective, options)
  return settled(addon().fusedHeadLossOnDeviceAsync(call), { ...batch, ...options, ...options.perToken })
}

/** The result of a call in progress. Until it settles, none of its device arrays can be disposed of. */
async function settled(pending: Promise<ObjectiveMetrics>, used: object): Promise<DeviceLossResult> {
  const release = DeviceArray.hold(Object.values(used).filter(array => array instanceof DeviceArray))
  try {
    const metrics = await pending
    return { loss: metrics.loss, metrics }
  } finally {
    release()
  }
}

/** GatherBatch on a device. */
export interface DeviceGatherBatch {
  /** (N × V) float32, bfloat16 or float16 */
  readonly logits: DeviceArray
  /** (N) int32; needed for logprobs only */
  readonly tokenIds?: DeviceArray
  /** Default 1. */
  readonly temperature?: number
}

/** gatherLogprobs on arrays of a device. Fills the given arrays, (N) float32 each. */
export function gatherLogprobsOnDevice(
  batch: DeviceGatherBatch,
  outputs: { logprobs?: DeviceArray; entropy?: DeviceArray; logSumExp?: DeviceArray },
  { stream = 0n }: StreamOptions = {},
): void {
  const { device, rows, vocabSize, dtype } = logitsOf(batch.logits)
  const pointer = pointers(device, rows)
  addon().gatherLogprobsOnDevice({
    rows,
    vocabSize,
    dtype,
    logits: batch.logits.pointer,
    logitsStride: batch.logits.strides[0],
    tokenIds: pointer('tokenIds', batch.tokenIds, 'int32'),
    temperature: batch.temperature ?? 1,
    logprobs: pointer('logprobs', outputs.logprobs, 'float32'),
    entropy: pointer('entropy', outputs.entropy, 'float32'),
    logSumExp: pointer('logSumExp', outputs.logSumExp, 'float32'),
    device,
    stream,
  })
}

function lossCall(batch: DeviceLossBatch, objective: Objective, options: DeviceLossOptions): RawCall {
  validateObjective(objective)
  const { logits, refLogits } = batch
  const { grad = 'in-place', perToken = {}, stream = 0n } = options
  const { device, rows, vocabSize, dtype } = logitsOf(logits)
  if (refLogits) checkMatrix('refLogits', refLogits, device, rows, vocabSize, [dtype])
  const target = grad === 'in-place' ? logits : grad === 'none' ? undefined : grad
  if (target && !(target instanceof DeviceArray)) {
    invalid(`grad is ${target}, expected in-place, none or a DeviceArray`)
  }
  if (target) checkMatrix('grad', target, device, rows, vocabSize, [dtype, 'float32'])
  return {
    ...rowPointers(batch, perToken, device, rows),
    vocabSize,
    dtype,
    logits: logits.pointer,
    logitsStride: logits.strides[0],
    refLogits: refLogits?.pointer,
    refStride: refLogits?.strides[0],
    gradLogits: target?.pointer,
    gradDtype: target?.dtype,
    gradStride: target?.strides[0],
    objective,
    device,
    stream,
  }
}

function headCall(batch: DeviceHeadBatch, objective: Objective, options: FusedHeadOptions): RawCall {
  validateObjective(objective)
  const { hidden, weight, refHidden, refWeight } = batch
  const { gradHidden, gradWeight, chunkRows, workspace, perToken = {}, stream = 0n } = options
  if (!(hidden instanceof DeviceArray)) invalid('hidden must be a DeviceArray')
  const { device, dtype } = hidden
  const [rows = 0, channels = 0] = hidden.shape
  checkMatrix('hidden', hidden, device, rows, channels, ['float32', 'bfloat16'])
  if (channels === 0) invalid('hidden has no channels, expected at least 1')
  if (!(weight instanceof DeviceArray)) invalid('weight must be a DeviceArray')
  const [vocabSize = 0] = weight.shape
  checkMatrix('weight', weight, device, vocabSize, channels, [dtype])
  const refChannels = refHidden?.shape[1]
  if (refHidden) checkMatrix('refHidden', refHidden, device, rows, refChannels ?? 0, [dtype])
  if (refHidden && !refWeight) invalid('refWeight is missing, and refHidden needs it')
  if (refWeight && !refHidden) invalid('refHidden is missing, and refWeight is of no use without it')
  if (refWeight) checkMatrix('refWeight', refWeight, device, vocabSize, refChannels ?? 0, [dtype])
  if (gradHidden) checkMatrix('gradHidden', gradHidden, device, rows, channels, [dtype, 'float32'])
  if (gradWeight) checkMatrix('gradWeight', gradWeight, device, vocabSize, channels, ['float32'])
  if (chunkRows !== undefined && !(Number.isSafeInteger(chunkRows) && chunkRows >= 1)) {
    invalid(`chunkRows is ${chunkRows}, expected a whole number >= 1`)
  }
  return {
    ...rowPointers(batch, perToken, device, rows),
    vocabSize,
    dtype,
    channels,
    hidden: hidden.pointer,
    hiddenStride: hidden.strides[0],
    weight: weight.pointer,
    weightStride: weight.strides[0],
    refChannels,
    refHidden: refHidden?.pointer,
    refHiddenStride: refHidden?.strides[0],
    refWeight: refWeight?.pointer,
    refWeightStride: refWeight?.strides[0],
    gradHidden: gradHidden?.pointer,
    gradHiddenDtype: gradHidden?.dtype,
    gradHiddenStride: gradHidden?.strides[0],
    gradWeight: gradWeight?.pointer,
    gradWeightStride: gradWeight?.strides[0],
    chunkRows: chunkRows ?? 0,
    workspace: pointers(device, rows)('workspace', workspace, 'uint8', workspace?.length),
    workspaceBytes: workspace?.length,
    objective,
    device,
    stream,
  }
}

function rowPointers(batch: DeviceRows, perToken: DevicePerToken, device: number, rows: number) {
  const pointer = pointers(device, rows)
  const { sequenceOffsets } = batch
  if (sequenceOffsets && !(sequenceOffsets.shape.length === 1 && sequenceOffsets.length >= 1)) {
    invalid('sequenceOffsets must have one dimension and at least one entry')
  }
  return {
    rows,
    ...mapRows(rowArrays, (field, { dtype }) => pointer(field, batch[field], dtype)),
    sequenceOffsets: pointer('sequenceOffsets', sequenceOffsets, 'int32', sequenceOffsets?.length),
    sequences: sequenceOffsets && sequenceOffsets.length - 1,
    ...mapRows(rowOutputs, (field, dtype) => pointer(field, perToken[field], dtype)),
  }
}

function logitsOf(logits: DeviceArray) {
  if (!(logits instanceof DeviceArray)) invalid('logits must be a DeviceArray')
  const [rows = 0, vocabSize = 0] = logits.shape
  checkMatrix('logits', logits, logits.device, rows, vocabSize, ['float32', 'bfloat16', 'float16'])
  return { device: logits.device, rows, vocabSize, dtype: logits.dtype as LogitsDType }
}

function checkMatrix(
  field: string,
  array: DeviceArray,
  device: number,
  rows: number,
  columns: number,
  dtypes: readonly DeviceDType[],
): void {
  if (!(array instanceof DeviceArray)) invalid(`${field} must be a DeviceArray`)
  if (array.device !== device) invalid(`${field} is on device ${array.device}, the others on ${device}`)
  if (!dtypes.includes(array.dtype)) invalid(`${field} is ${array.dtype}, expected ${dtypes.join(' or ')}`)
  const { shape, strides } = array
  if (shape.length !== 2 || shape[0] !== rows || shape[1] !== columns) {
    invalid(`${field} has the shape (${shape.join(', ')}), expected (${rows}, ${columns})`)
  }
  if (strides[1] !== 1)
    invalid(`${field} has the strides (${strides.join(', ')}), expected rows of adjoining words`)
}

/** Checks arrays of one dimension and returns their addresses. */
function pointers(device: number, rows: number) {
  return (field: string, array: DeviceArray | undefined, dtype: DeviceDType, length: number = rows) => {
    if (array === undefined) return undefined
    if (!(array instanceof DeviceArray)) invalid(`${field} must be a DeviceArray`)
    if (array.device !== device) invalid(`${field} is on device ${array.device}, the others on ${device}`)
    if (array.dtype !== dtype) invalid(`${field} is ${array.dtype}, expected ${dtype}`)
    if (array.length !== length) invalid(`${field} has ${array.length} elements, expected ${length}`)
    if (!array.dense) invalid(`${field} must be dense`)
    return array.pointer
  }
}

function cudaNumber(device: KernelDevice): number {
  const number = deviceNumber(device)
  if (number === undefined) invalid('device is cpu, expected cuda or cuda: and a number')
  return number
}

function checkDType(dtype: DeviceDType): void {
  if (!Object.hasOwn(arrays, dtype)) {
    invalid(`dtype is ${dtype}, expected one of ${Object.keys(arrays).join(', ')}`)
  }
}

function checkShape(shape: readonly number[]): void {
  if (!shape.every(n => Number.isSafeInteger(n) && n >= 0) || !Number.isSafeInteger(size(shape))) {
    invalid(`shape is (${shape.join(', ')}), expected whole numbers >= 0`)
  }
}

function checkStrides(shape: readonly number[], strides: readonly number[]): void {
  if (strides.length !== shape.length || !strides.every(n => Number.isSafeInteger(n) && n >= 0)) {
    invalid(
      `strides are (${strides.join(', ')}), expected a whole number >= 0 for each of ${shape.length} dimensions`,
    )
  }
}

function size(shape: readonly number[]): number {
  return shape.reduce((product, n) => product * n, 1)
}

function denseStrides(shape: readonly number[]): number[] {
  return shape.map((_, i) => size(shape.slice(i + 1)))
}

function bytesOf(dtype: DeviceDType): number {
  return arrays[dtype].BYTES_PER_ELEMENT
}

function naturalDType(array: HostArray): DeviceDType {
  if (array instanceof Float32Array) return 'float32'
  if (array instanceof Int32Array) return 'int32'
  if (array instanceof Uint8Array) return 'uint8'
  return invalid('dtype is missing: a Uint16Array may hold bfloat16 or float16')
}
