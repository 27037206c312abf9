/** Helpers of the engine's tests: a small model, batches, and a reader of safetensors files. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { rapo } from '../../lib/loss/objective.js'
import { initializeModel, loadPolicy as loadPolicyOn } from '../../lib/model/engine.js'
import type {
  Completions,
  Device,
  LoadOptions,
  MicroBatch,
  PackedTokens,
  Policy,
  SamplingParams,
} from '../../lib/model/policy.js'

const scratch = mkdtempSync(path.join(tmpdir(), 'rapo-engine-test-'))
process.on('exit', () => rmSync(scratch, { recursive: true, force: true }))
let count = 0

/** A new directory that is removed when the process ends. */
export function newDir(): string {
  const dir = path.join(scratch, String(++count))
  mkdirSync(dir)
  return dir
}

/** The device that the engine's tests run on; `npm run test:gpu` sets it to cuda. */
export const testDevice = (process.env.RAPO_TEST_DEVICE || 'cpu') as Device

/** `aten` tests the operations of other devices on the CPU; engine-isa.test.ts sets it for its child processes. */
export const testBackend = process.env.RAPO_TEST_BACKEND as LoadOptions['backend']

/** loadPolicy with that device and backend. */
export function loadPolicy(dir: string, options: LoadOptions = {}): Promise<Policy> {
  return loadPolicyOn(dir, { device: testDevice, ...(testBackend && { backend: testBackend }), ...options })
}

export const tinyConfig = {
  architectures: ['Qwen2ForCausalLM'],
  model_type: 'qwen2',
  hidden_act: 'silu',
  vocab_size: 24,
  hidden_size: 32,
  intermediate_size: 48,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 64,
  // Large weights, so that distributions are far from uniform.
  initializer_range: 0.3,
  rope_theta: 10000,
  tie_word_embeddings: true,
  torch_dtype: 'float32',
}

/** A model directory with random weights. */
export async function newModel(changes: object = {}, seed = 1): Promise<string> {
  const dir = newDir()
  writeFileSync(path.join(dir, 'config.json'), JSON.stringify({ ...tinyConfig, ...changes }))
  await initializeModel(dir, seed)
  return dir
}

export function pack(sequences: readonly (readonly number[])[]): PackedTokens {
  const offsets = Int32Array.from({ length: sequences.length + 1 })
  sequences.forEach((s, i) => {
    offsets[i + 1] = offsets[i]! + s.length
  })
  return { tokenIds: Int32Array.from(sequences.flat()), offsets }
}

export function unpack({ tokenIds, offsets }: PackedTokens): number[][] {
  return Array.from(offsets.subarray(1), (end, i) => Array.from(tokenIds.subarray(offsets[i], end)))
}

export const sampling = {
  n: 1,
  maxNewTokens: 12,
  temperature: 1,
  topP: 1,
  topK: 0,
  minP: 0,
  stopTokenIds: [0],
  seed: 7,
} satisfies SamplingParams

/** A sampling that takes longer than any test if it has many prompts. */
export const endless: SamplingParams = { ...sampling, n: 20_000, maxNewTokens: 40, stopTokenIds: [] }

/** The code of a worker thread that runs engine-worker.ts. Node 20 does not pass tsx's hooks on to worker threads. */
export const workerBootstrap = `import('tsx/esm/api').then(tsx => {
  tsx.register()
  return import(${JSON.stringify(new URL('./engine-worker.ts', import.meta.url).href)})
})`

export const prompts = pack([[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11], [12, 13, 14, 15]])

/** Sequences of prompt and completion, and the positions whose logits predict the completions' tokens. */
export function completionRows(promptTokens: PackedTokens, completions: Completions, n: number) {
  const given = unpack(promptTokens)
  const made = unpack(completions.tokens)
  const sequences = made.map((c, i) => [...given[Math.floor(i / n)]!, ...c])
  const packed = pack(sequences)
  const rowPositions = made.flatMap((c, i) => {
    const first = packed.offsets[i]! + given[Math.floor(i / n)]!.length - 1
    return c.map((_, t) => first + t)
  })
  return {
    sequences: packed,
    rowPositions: Int32Array.from(rowPositions),
    tokenIds: completions.tokens.tokenIds,
  }
}

export const objective = rapo({ klCoef: 0.1, entropyCoef: 0.01 })

/** A batch for accumulate() made of completions. Advantages and φ differ from row to row. */
export function trainingBatch(promptTokens: PackedTokens, completions: Completions, n: number): MicroBatch {
  const rows = completionRows(promptTokens, completions, n)
  const count = rows.tokenIds.length
  return {
    ...rows,
    tokenWeights: new Float32Array(count).fill(1 / count),
    advantages: Float32Array.from({ length: count }, (_, i) => Math.sin(3 * i + 1)),
    refWeights: Float32Array.from({ length: count }, (_, i) => (i % 5) / 4),
    oldLogprobs: completions.logprobs,
  }
}

export interface StoredTensor {
  readonly dtype: string
  readonly shape: number[]
  readonly bytes: Buffer
  /** Of F32 tensors only. */
  readonly values: Float32Array
}

/** All tensors of a safetensors file (F32 as numbers, any dtype as bytes). */
export function readSafetensors(file: string): Map<string, StoredTensor> {
  const content = readFileSync(file)
  const length = Number(content.readBigUInt64LE(0))
  const header = JSON.parse(content.toString('utf8', 8, 8 + length))
  const tensors = new Map<string, StoredTensor>()
  for (const [name, entry] of Object.entries<{
    dtype: string
    shape: number[]
    data_offsets: [number, number]
  }>(header)) {
    if (name === '__metadata__') continue
    const [begin, end] = entry.data_offsets
    const bytes = Buffer.from(content.subarray(8 + length + begin, 8 + length + end))
    const values = new Float32Array(entry.dtype === 'F32' ? bytes.length / 4 : 0)
    for (let i = 0; i < values.length; i++) values[i] = bytes.readFloatLE(4 * i)
    tensors.set(name, { dtype: entry.dtype, shape: entry.shape, bytes, values })
  }
  return tensors
}

/** Builds a safetensors file from a header and data, which need not be valid. */
export function writeSafetensors(file: string, header: object | string, data: Buffer): void {
  const text = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(text.length))
  writeFileSync(file, Buffer.concat([length, text, data]))
}

/** Makes one weight of a model directory NaN: the last one, which is in the final norm if embeddings are tied. */
export function poison(dir: string): string {
  const file = path.join(dir, 'model.safetensors')
  const content = readFileSync(file)
  content.writeFloatLE(Number.NaN, content.length - 4)
  writeFileSync(file, content)
  return dir
}

export async function rejects(
  promise: Promise<unknown>,
  message: RegExp,
  code = 'ERR_RAPO_INVALID_ARGUMENT',
): Promise<void> {
  let error: unknown
  try {
    await promise
  } catch (thrown) {
    error = thrown
  }
  assert.instance(error, RapoError, `expected a RapoError that matches ${message}`)
  assert.match((error as RapoError).message, message)
  assert.is((error as RapoError).code, code)
}

export function maxDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) throw new Error(`lengths ${a.length} and ${b.length}`)
  let max = 0
  for (let i = 0; i < a.length; i++) {
    const difference = Math.abs(a[i]! - b[i]!)
    if (!(difference <= max)) max = difference // NaN too
  }
  return max
}
