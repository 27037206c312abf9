/** What the benchmarks share: a batch, the oracle's verdict on a result, medians. */

import { createRandom } from '../base/random.js'
import { kernelsInfo, type Logits, type LogitsDType, type LossBatch } from '../loss/kernels.js'
import type { Objective } from '../loss/objective.js'
import { loadKernels } from '../setup/addons.js'

export type BenchDType = Exclude<LogitsDType, 'float16'>
export type Batch = LossBatch & { dtype: BenchDType }

/** What the benchmarks need of bindings/kernels.cpp beyond lib/loss/kernels.ts. */
export const raw = loadKernels() as unknown as {
  setIsa(name: string): void
  policyLossReference(call: object): { loss: number }
}

/** Bell-shaped logits, φ of 0.7 and 1, ratios about 1: a batch in the middle of training. */
export function makeBatch(dtype: BenchDType, rows: number, V: number): Batch {
  const random = createRandom(1)
  const noise = Float32Array.from({ length: 65537 }, () => 6 * (random.float() + random.float() - 1))
  const logits = new Float32Array(rows * V)
  const refLogits = new Float32Array(rows * V)
  for (let i = 0; i < logits.length; ++i) {
    logits[i] = noise[i % 65537]!
    refLogits[i] = logits[i]! + 0.1 * noise[(7 * i) % 65537]!
  }
  const fill = (f: (i: number) => number) => Float32Array.from({ length: rows }, (_, i) => f(i))
  return {
    vocabSize: V,
    dtype,
    logits: narrow(logits, dtype),
    refLogits: narrow(refLogits, dtype),
    tokenIds: Int32Array.from({ length: rows }, () => random.below(V)),
    tokenWeights: fill(() => 1 / rows),
    advantages: fill(() => 2 * random.float() - 1),
    refWeights: fill(i => (i % 2 ? 1 : 0.7)),
    oldLogprobs: fill(() => -Math.log(V) + random.float()),
  }
}

function narrow(values: Float32Array, dtype: BenchDType): Logits {
  if (dtype === 'float32') return values
  const bits = new Uint32Array(values.buffer)
  const halves = new Uint16Array(values.length)
  for (let i = 0; i < bits.length; ++i) halves[i] = (bits[i]! + 0x7fff + ((bits[i]! >>> 16) & 1)) >>> 16
  return halves
}

export interface Verdict {
  loss: number
  /** (N × V) */
  grad: Float32Array
}

export function oracle(batch: Batch, objective: Objective): Verdict {
  const grad = new Float32Array(batch.logits.length)
  const { loss } = raw.policyLossReference({
    ...batch,
    objective,
    rows: batch.tokenIds.length,
    gradLogits: grad,
    gradDtype: 'float32',
  })
  return { loss, grad }
}

/**
 * Throws unless loss and gradient are the oracle's, row by row: within 64 float32 roundings of the row's largest element
 * and of the weight that multiplies the difference of two log-probs, and one rounding of the gradient's type. torch adds
 * up the vocabulary in float32 and is given 1024.
 */
export function validate(
  who: string,
  got: { loss: number; grad: Logits },
  want: Verdict,
  { klCoef }: Objective,
  roundings: 64 | 1024,
  ofRow: number,
): void {
  const relative = roundings * 2 ** -24
  if (!(Math.abs(got.loss - want.loss) <= relative * Math.max(1, Math.abs(want.loss)))) {
    throw new Error(`${who}: the loss is ${got.loss}, the oracle's ${want.loss}; not timed`)
  }
  const half = got.grad instanceof Uint16Array ? got.grad : undefined
  const bits = new Uint32Array(1)
  const float = new Float32Array(bits.buffer)
  const V = ofRow
  for (let start = 0; start < want.grad.length; start += V) {
    let largest = klCoef / (want.grad.length / V)
    for (let i = start; i < start + V; ++i) largest = Math.max(largest, Math.abs(want.grad[i]!))
    for (let i = start; i < start + V; ++i) {
      if (half) bits[0] = half[i]! << 16
      const value = half ? float[0]! : got.grad[i]!
      const limit = relative * largest + (half ? 2 ** -8 : 0) * Math.abs(want.grad[i]!)
      if (!(Math.abs(value - want.grad[i]!) <= limit)) {
        throw new Error(
          `${who}: gradient [${start / V}, ${i - start}] is ${value}, the oracle's ${want.grad[i]}; not timed`,
        )
      }
    }
  }
}

/** Median, and the ends of its 95 % confidence interval. */
export interface Spread {
  readonly median: number
  readonly low: number
  readonly high: number
}

/**
 * The interval is distribution-free: between the order statistics n/2 ∓ 1.96 √n / 2 (Conover, Practical Nonparametric
 * Statistics, 3.2). Its ends are the extremes for n ≤ 5.
 */
export function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((x, y) => x - y)
  const n = sorted.length
  const half = (1.96 * Math.sqrt(n)) / 2
  const low = sorted[Math.max(0, Math.floor(n / 2 - half) - 1)]!
  const high = sorted[Math.min(n - 1, Math.ceil(n / 2 + half))]!
  return { median: median(sorted), low, high }
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((x, y) => x - y)
  const middle = sorted.length >> 1
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

/** Runs body and returns what it took, in milliseconds. */
export function timed(body: () => void): number {
  const start = performance.now()
  body()
  return performance.now() - start
}

/** Runs body with the kernels of one instruction set; '' is the default. */
export function withIsa<T>(isa: string, body: () => T): T {
  raw.setIsa(isa)
  try {
    return body()
  } finally {
    raw.setIsa('')
  }
}

/** Names of the instruction sets to measure: one, or all that the machine has. */
export const isasToMeasure = (wanted: string): readonly string[] => (wanted ? [wanted] : kernelsInfo().isas)
