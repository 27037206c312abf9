/** Batches that contain every kind of row, and ways to call the kernels on them. */

import { createRandom } from '../../lib/base/random.js'
import type { Logits, LogitsDType, LossBatch } from '../../lib/loss/kernels.js'
import type { Objective, ObjectiveMetrics } from '../../lib/loss/objective.js'
import { loadKernels } from '../../lib/setup/addons.js'
import { exact, type FormulaRow, logSoftmax } from './kernels-formula.js'

/** Functions of bindings/kernels.cpp that the tests need and lib/loss/kernels.ts does not have. */
export const raw = loadKernels() as unknown as {
  policyLoss(call: object): ObjectiveMetrics
  policyLossAsync(call: object): Promise<ObjectiveMetrics>
  policyLossReference(call: object): ObjectiveMetrics
  policyLossOnDevice(call: object): ObjectiveMetrics
  gatherLogprobs(call: object): void
  gatherLogprobsReference(call: object): void
  setIsa(name: string): void
  isas(): string[]
  lists(): {
    numbers: Record<string, { default: number; low: number; open: boolean; high: number }>
    penalties: string[]
    surrogates: string[]
    rowArrays: string[]
    rowOutputs: string[]
  }
}

export function normal(random: () => number): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random())
}

const bits = new Uint32Array(1)
const float = new Float32Array(bits.buffer)

export function encode(x: number, dtype: LogitsDType): number {
  float[0] = x
  const b = bits[0]!
  if (dtype === 'bfloat16') return Number.isNaN(x) ? 0x7fc0 : (b + 0x7fff + ((b >>> 16) & 1)) >>> 16
  const sign = (b >>> 16) & 0x8000
  const m = Math.abs(x)
  if (Number.isNaN(x)) return 0x7e00
  if (m >= 65520) return sign | 0x7c00
  if (m < 2 ** -14) return sign | roundEven(m * 2 ** 24)
  const e = Math.floor(Math.log2(m))
  return sign | ((e + 14) * 1024 + roundEven((m / 2 ** e) * 1024))
}

function roundEven(x: number): number {
  const floor = Math.floor(x)
  const rest = x - floor
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor
}

export function decode(half: number, dtype: LogitsDType): number {
  if (dtype === 'bfloat16') {
    bits[0] = half << 16
    return float[0]!
  }
  const sign = half & 0x8000 ? -1 : 1
  const e = (half >> 10) & 31
  const m = half & 1023
  if (e === 31) return m ? Number.NaN : sign * Infinity
  return sign * (e === 0 ? m * 2 ** -24 : (1 + m / 1024) * 2 ** (e - 15))
}

export function toLogits(values: ArrayLike<number>, dtype: LogitsDType): Logits {
  return dtype === 'float32'
    ? Float32Array.from(values)
    : Uint16Array.from(values, (x: number) => encode(x, dtype))
}

export function fromLogits(values: Logits, dtype: LogitsDType): Float64Array {
  return values instanceof Float32Array
    ? Float64Array.from(values)
    : Float64Array.from(values, x => decode(x, dtype))
}

export interface Case {
  batch: LossBatch & { dtype: LogitsDType }
  /** The unmasked rows in the formula's form; undefined for masked rows. */
  rows: (FormulaRow | undefined)[]
}

const ratios = [0.5, 0.79, 0.81, 1, 1.19, 1.21, 2]
const advantages = [1.5, -0.75, 0]
const phis = [0, 0.3, 1]
const policyWeights = [1, 0, 0.3, 2.5]

/** Kinds of rows, by their logits. */
const kinds = [
  'normal',
  'normal',
  'masked',
  'equal',
  'huge',
  'one finite',
  'some -inf',
  'no reference mass',
] as const

/**
 * i selects the kind, ratio, advantage, φ and policy weight of row i, so that 84 rows contain all combinations. Ratios are one
 * hundredth away from the clip bounds 0.8 and 1.2, far more than any rounding.
 */
export function makeCase(
  V: number,
  rows: number,
  dtype: LogitsDType,
  objective: Objective,
  seed: number,
  withOld = true,
): Case {
  const random = createRandom(seed).float
  const gauss = () => 3 * normal(random)
  const logits = new Float64Array(rows * V)
  const refLogits = new Float64Array(rows * V)
  const forward = objective.penalty.startsWith('forward')
  const tokenIds = new Int32Array(rows)
  const tokenWeights = new Float32Array(rows)
  const rowAdvantages = new Float32Array(rows)
  const refWeights = new Float32Array(rows)
  const oldLogprobs = new Float32Array(rows)
  const rowPolicyWeights = new Float32Array(rows)
  const formulaRows: (FormulaRow | undefined)[] = []
  for (let i = 0; i < rows; ++i) {
    let kind: (typeof kinds)[number] = kinds[(i + seed) % kinds.length]!
    // With any other penalty, a word that the reference rules out is an error, which has a test of its own.
    if (
      kind === 'no reference mass' &&
      (V === 1 || !['forward', 'forward-score', 'none'].includes(objective.penalty))
    ) {
      kind = 'normal'
    }
    const a = Math.floor(random() * V)
    const z = Array.from({ length: V }, gauss)
    const u = Array.from({ length: V }, gauss)
    for (let v = 0; v < V; ++v) {
      if (kind === 'masked') z[v] = u[v] = Number.NaN
      if (kind === 'equal') z[v] = 2.5
      if (kind === 'huge') z[v] = (v - a) % 2 === 0 ? 1e4 : -1e4
      if (kind === 'one finite' && v !== a) z[v] = u[v] = -Infinity
      if (kind === 'some -inf' && v !== a && v % 3 === 0) z[v] = u[v] = -Infinity
    }
    if (kind === 'no reference mass') u[a] = -Infinity
    logits.set(z, i * V)
    refLogits.set(u, i * V)
    tokenIds[i] = kind === 'masked' ? -5 : a
    tokenWeights[i] = kind === 'masked' ? 0 : 0.05 + random()
    rowAdvantages[i] = kind === 'masked' ? Number.NaN : advantages[i % 3]!
    // With φ = 0, a word that the policy rules out makes the exact forward KL infinite.
    const positive =
      objective.penalty === 'forward-full' && kind !== 'normal' && kind !== 'equal' && kind !== 'huge'
    const phi = positive ? 0.3 : phis[Math.floor(i / 2) % 3]!
    refWeights[i] = kind === 'masked' ? 7 : phi
    oldLogprobs[i] = Number.NaN
    rowPolicyWeights[i] = kind === 'masked' ? -1 : policyWeights[i % 4]!
    if (kind === 'masked') {
      formulaRows.push(undefined)
      continue
    }
    const stored = fromLogits(toLogits(z, dtype), dtype)
    const lp = logSoftmax(stored, 1, objective.temperature, exact)[a]!
    oldLogprobs[i] = lp - Math.log(ratios[i % ratios.length]!)
    formulaRows.push({
      logits: stored,
      refLogits: fromLogits(toLogits(u, dtype), dtype),
      tokenId: a,
      weight: tokenWeights[i]!,
      advantage: rowAdvantages[i]!,
      phi: forward ? refWeights[i]! : 1,
      policyWeight: rowPolicyWeights[i]!,
      ...(withOld && { oldLogprob: oldLogprobs[i]! }),
    })
  }
  return {
    batch: {
      vocabSize: V,
      dtype,
      logits: toLogits(logits, dtype),
      ...(objective.penalty !== 'none' && { refLogits: toLogits(refLogits, dtype) }),
      tokenIds,
      tokenWeights,
      advantages: rowAdvantages,
      ...(forward && { refWeights }),
      ...(withOld && { oldLogprobs }),
      policyWeights: rowPolicyWeights,
    },
    rows: formulaRows,
  }
}

/** The oracle on logits in double: metrics and, if asked for, the gradient in double. */
export function oracle(
  { batch, rows }: Case,
  objective: Objective,
  logits?: Float64Array,
): { metrics: ObjectiveMetrics; grad: Float64Array } {
  const V = batch.vocabSize
  const wide = (array: Logits) => fromLogits(array, batch.dtype)
  const grad = new Float64Array(rows.length * V)
  const metrics = raw.policyLossReference({
    ...batch,
    objective,
    rows: rows.length,
    dtype: 'float64',
    logits: logits ?? wide(batch.logits),
    ...(batch.refLogits && { refLogits: wide(batch.refLogits) }),
    gradLogits: grad,
    gradDtype: 'float64',
  })
  return { metrics, grad }
}

/** Two rows of three words, for tests of calls. */
export function small(): LossBatch<Float32Array> {
  return {
    vocabSize: 3,
    logits: Float32Array.of(1, 2, 3, 0, 0, 1),
    refLogits: Float32Array.of(1, 1, 1, 0, 2, 0),
    tokenIds: Int32Array.of(2, 0),
    tokenWeights: Float32Array.of(0.5, 0.5),
    advantages: Float32Array.of(1, -1),
    refWeights: Float32Array.of(1, 0.5),
    oldLogprobs: Float32Array.of(-0.5, -1.5),
  }
}
