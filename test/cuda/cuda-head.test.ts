/**
 * The fused head on CUDA: through the emulator of test/cuda, whose products are plain loops, or on a device where
 * RAPO_CUDA_LIBRARY names the real library (npm run test:gpu).
 *
 * Tolerances. What is wanted is the formula in double on logits in double. A result may be as far from it as twice what
 * the plain low-precision version loses (logits rounded to the dtype, the formula in float32, the gradient rounded to
 * the dtype, float32 sums), the largest loss in the array, plus four float32 roundings of the largest sum of absolute
 * terms.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { createRandom } from '../../lib/base/random.js'
import {
  DeviceArray,
  type DeviceHeadBatch,
  type FusedHeadOptions,
  fusedHeadLossOnDevice,
  fusedHeadLossOnDeviceAsync,
  fusedHeadWorkspace,
} from '../../lib/loss/cuda.js'
import type { LogitsDType } from '../../lib/loss/kernels.js'
import { gspo, type Objective, penalties, rapo } from '../../lib/loss/objective.js'
import { fromLogits, normal, toLogits } from '../helpers/kernels-cases.js'
import { errorOf, objectiveFor } from '../helpers/kernels-check.js'
import {
  exact,
  type FormulaResult,
  type FormulaRow,
  float32,
  formula,
  logSoftmax,
  type Round,
  u32,
} from '../helpers/kernels-formula.js'
import { emulated } from './library.js'

type DType = Exclude<LogitsDType, 'float16'>
const dtypes: DType[] = ['float32', 'bfloat16']
/** Odd ones, so that no row of any matrix starts where a vector does by chance; C′ differs from C. */
const [N, V, C, refC] = [23, 203, 19, 13]
const chunk = 7
/** Far from the clip bounds 0.8 and 1.2, since the logits' rounding to bfloat16 moves a ratio by some percent. */
const ratios = [0.5, 1, 1.5]
const masked = (i: number) => i % 5 === 3

interface Head {
  dtype: DType
  /** As stored, that is, rounded to the dtype. */
  hidden: Float64Array
  weight: Float64Array
  refHidden: Float64Array
  refWeight: Float64Array
  tokenIds: Int32Array
  tokenWeights: Float32Array
  advantages: Float32Array
  refWeights: Float32Array
  oldLogprobs: Float32Array
  policyWeights: Float32Array
  /** gspo alone. */
  sequenceOffsets?: Int32Array
  /** What gradWeight holds before the call. */
  before: Float32Array
}

function makeHead(dtype: DType, objective: Objective, seed: number): Head {
  const random = createRandom(seed).float
  const stored = (rows: number, columns: number, scale: number) =>
    fromLogits(
      toLogits(
        Float64Array.from({ length: rows * columns }, () => scale * normal(random)),
        dtype,
      ),
      dtype,
    )
  const each = (f: (i: number) => number) => Float32Array.from({ length: N }, (_, i) => f(i))
  const forward = objective.penalty.startsWith('forward')
  const head: Head = {
    dtype,
    hidden: stored(N, C, 1),
    weight: stored(V, C, 0.5),
    refHidden: stored(N, refC, 1),
    refWeight: stored(V, refC, 0.5),
    tokenIds: Int32Array.from({ length: N }, (_, i) => (masked(i) ? -5 : Math.floor(random() * V))),
    tokenWeights: each(i => (masked(i) ? 0 : 0.05 + random())),
    advantages: each(i => (masked(i) ? Number.NaN : [1.5, -0.75, 0][i % 3]!)),
    refWeights: each(i => (masked(i) ? 7 : forward ? [0, 0.3, 1][Math.floor(i / 2) % 3]! : 1)),
    oldLogprobs: each(() => Number.NaN),
    policyWeights: each(i => (masked(i) ? -1 : [1, 0, 0.3, 2.5][i % 4]!)),
    before: Float32Array.from({ length: V * C }, () => normal(random)),
  }
  const logits = product(head.hidden, head.weight, C, float32)
  for (let i = 0; i < N; ++i) {
    if (masked(i)) {
      head.hidden.fill(Number.NaN, i * C, (i + 1) * C)
      head.refHidden.fill(Infinity, i * refC, (i + 1) * refC)
    } else {
      const lp = logSoftmax(logits.subarray(i * V, (i + 1) * V), 1, objective.temperature, exact)
      head.oldLogprobs[i] = lp[head.tokenIds[i]!]! - Math.log(ratios[i % ratios.length]!)
    }
  }
  return head
}

/** (N × V) hidden × weightᵀ, each sum in the order of the channels. */
function product(hidden: Float64Array, weight: Float64Array, channels: number, round: Round): Float64Array {
  const rows = hidden.length / channels
  const out = new Float64Array(rows * V)
  for (let i = 0; i < rows; ++i) {
    for (let v = 0; v < V; ++v) {
      let sum = 0
      for (let c = 0; c < channels; ++c) {
        sum = round(sum + round(hidden[i * channels + c]! * weight[v * channels + c]!))
      }
      out[i * V + v] = sum
    }
  }
  return out
}

interface Result {
  rows: (FormulaResult | undefined)[]
  gradHidden: Float64Array
  gradWeight: Float64Array
  /** The largest sum of absolute terms of an element. */
  hiddenScale: number
  weightScale: number
}

/** The head by the formula: with `exact` nothing is rounded, with float32 what low precision rounds is. */
function byFormula(head: Head, objective: Objective, round: Round): Result {
  const low = (x: Float64Array) => (round === exact ? x : fromLogits(toLogits(x, head.dtype), head.dtype))
  const logits = low(product(head.hidden, head.weight, C, round))
  const refLogits = low(product(head.refHidden, head.refWeight, refC, round))
  const rowOf = (matrix: Float64Array, i: number) => matrix.subarray(i * V, (i + 1) * V)
  const inputs = Array.from({ length: N }, (_, i): FormulaRow | undefined =>
    masked(i)
      ? undefined
      : {
          logits: rowOf(logits, i),
          refLogits: rowOf(refLogits, i),
          tokenId: head.tokenIds[i]!,
          weight: head.tokenWeights[i]!,
          advantage: head.advantages[i]!,
          phi: head.refWeights[i]!,
          policyWeight: head.policyWeights[i]!,
          oldLogprob: head.oldLogprobs[i]!,
        },
  )
  const offsets = head.sequenceOffsets
  for (let b = 0; offsets && b + 1 < offsets.length; ++b) {
    const sequence = inputs.slice(offsets[b], offsets[b + 1]).filter(row => row !== undefined)
    const logRatios = sequence.map(
      row => logSoftmax(row.logits, 1, objective.temperature, round)[row.tokenId]! - row.oldLogprob!,
    )
    const mean = logRatios.reduce((x, y) => x + y, 0) / logRatios.length
    for (const row of sequence) row.sequenceLogRatio = mean
  }
  const rows = inputs.map(row => row && formula(row, objective, round))
  const gradHidden = new Float64Array(N * C)
  const gradWeight = Float64Array.from(head.before)
  const hiddenSize = new Float64Array(N * C)
  const weightSize = Float64Array.from(head.before, Math.abs)
  rows.forEach((row, i) => {
    if (!row) return
    const grad = low(row.grad)
    for (let v = 0; v < V; ++v) {
      for (let c = 0; c < C; ++c) {
        const [toHidden, toWeight] = [
          round(grad[v]! * head.weight[v * C + c]!),
          round(grad[v]! * head.hidden[i * C + c]!),
        ]
        gradHidden[i * C + c] = round(gradHidden[i * C + c]! + toHidden)
        gradWeight[v * C + c] = round(gradWeight[v * C + c]! + toWeight)
        hiddenSize[i * C + c]! += Math.abs(toHidden)
        weightSize[v * C + c]! += Math.abs(toWeight)
      }
    }
  })
  const largest = (x: Float64Array) => x.reduce((a, b) => Math.max(a, b))
  return { rows, gradHidden, gradWeight, hiddenScale: largest(hiddenSize), weightScale: largest(weightSize) }
}

interface Given {
  batch: DeviceHeadBatch
  gradHidden: DeviceArray
  gradWeight: DeviceArray
}

/** Runs with the head's arrays on the device; they last until what it returns has settled. */
function onDevice<T>(head: Head, objective: Objective, run: (given: Given) => T): T {
  const { dtype } = head
  const made: DeviceArray[] = []
  const keep = (array: DeviceArray) => {
    made.push(array)
    return array
  }
  const matrix = (values: Float64Array, rows: number, columns: number) =>
    keep(DeviceArray.from(toLogits(values, dtype), { dtype, shape: [rows, columns] }))
  const dispose = () => {
    for (const array of made) array.dispose()
  }
  let result: T | undefined
  try {
    result = run({
      batch: {
        hidden: matrix(head.hidden, N, C),
        weight: matrix(head.weight, V, C),
        ...(objective.penalty !== 'none' && {
          refHidden: matrix(head.refHidden, N, refC),
          refWeight: matrix(head.refWeight, V, refC),
        }),
        tokenIds: keep(DeviceArray.from(head.tokenIds)),
        tokenWeights: keep(DeviceArray.from(head.tokenWeights)),
        advantages: keep(DeviceArray.from(head.advantages)),
        ...(objective.penalty.startsWith('forward') && {
          refWeights: keep(DeviceArray.from(head.refWeights)),
        }),
        oldLogprobs: keep(DeviceArray.from(head.oldLogprobs)),
        policyWeights: keep(DeviceArray.from(head.policyWeights)),
        ...(head.sequenceOffsets && { sequenceOffsets: keep(DeviceArray.from(head.sequenceOffsets)) }),
      },
      gradHidden: keep(DeviceArray.allocate(dtype, [N, C])),
      gradWeight: keep(DeviceArray.from(head.before, { shape: [V, C] })),
    })
    return result
  } finally {
    if (result instanceof Promise) result.finally(dispose).catch(() => {})
    else dispose()
  }
}

/** One call, and what it leaves behind. */
function call(head: Head, objective: Objective, options: FusedHeadOptions = { chunkRows: chunk }) {
  return onDevice(head, objective, ({ batch, gradHidden, gradWeight }) => {
    const { metrics } = fusedHeadLossOnDevice(batch, objective, { gradHidden, gradWeight, ...options })
    return { metrics, gradHidden: gradHidden.download(), gradWeight: gradWeight.download<Float32Array>() }
  })
}

function near(name: string, got: Float64Array, want: Float64Array, naive: Float64Array, scale: number): void {
  const lost = want.reduce((x, w, i) => Math.max(x, Math.abs(naive[i]! - w)), 0)
  const allowed = 2 * lost + 4 * u32 * scale
  got.forEach((x, i) => {
    if (!(Math.abs(x - want[i]!) <= allowed)) {
      assert.unreachable(`${name}[${i}] is ${x}, want ${want[i]} ± ${allowed}`)
    }
  })
}

function check(name: string, head: Head, objective: Objective, options?: FusedHeadOptions): void {
  const want = byFormula(head, objective, exact)
  const naive = byFormula(head, objective, float32)
  const got = call(head, objective, options)
  const low = fromLogits(toLogits(naive.gradHidden, head.dtype), head.dtype)
  const gradHidden = fromLogits(got.gradHidden as Float32Array, head.dtype)
  near(`${name} gradHidden`, gradHidden, want.gradHidden, low, want.hiddenScale)
  near(
    `${name} gradWeight`,
    Float64Array.from(got.gradWeight),
    want.gradWeight,
    naive.gradWeight,
    want.weightScale,
  )
  for (let i = 0; i < N; ++i) {
    if (masked(i))
      assert.ok(
        gradHidden.subarray(i * C, (i + 1) * C).every(x => x === 0),
        `${name}: masked ${i}`,
      )
  }
  const present = (rows: (FormulaResult | undefined)[]) => rows.filter(row => row !== undefined)
  const [wantRows, naiveRows] = [present(want.rows), present(naive.rows)]
  const sums = { loss: 'loss', klSum: 'kl', entropySum: 'entropy', ratioSum: 'ratio' } as const
  for (const [metric, field] of Object.entries(sums) as [keyof typeof sums, (typeof sums)['loss']][]) {
    // A sum may be off by what its parts may be.
    const allowed = wantRows.reduce(
      (sum, row, i) => sum + 2 * Math.abs(naiveRows[i]![field] - row[field]) + 4 * u32 * (1 + row.klScale),
      0,
    )
    const total = wantRows.reduce((sum, row) => sum + row[field], 0)
    const off = Math.abs(got.metrics[metric] - total)
    assert.ok(off <= allowed, `${name} ${metric} ${got.metrics[metric]}, want ${total} ± ${allowed}`)
  }
  assert.is(got.metrics.tokens, wantRows.length)
  assert.is(got.metrics.clippedLow, wantRows.filter(row => row.clipped === 1).length, name)
  assert.is(got.metrics.clippedHigh, wantRows.filter(row => row.clipped === 2).length, name)
}

for (const dtype of dtypes) {
  test(`${dtype}: every penalty, in chunks that do not divide the rows`, () => {
    let seed = 1
    for (const penalty of penalties) {
      const objective = objectiveFor(penalty, [1, 0.7, 1.6][seed % 3]!)
      check(`${dtype} ${penalty}`, makeHead(dtype, objective, seed++), objective)
    }
  })
}

test('chunks of any size', () => {
  const objective = objectiveFor('forward')
  for (const dtype of dtypes) {
    const head = makeHead(dtype, objective, 2)
    const whole = call(head, objective, { chunkRows: N })
    for (const chunkRows of [1, 2, 11, 22, 23, 1000]) {
      check(`${dtype} chunks of ${chunkRows}`, head, objective, { chunkRows })
      if (!emulated) continue // products of other shapes may add up in another order there
      const parts = call(head, objective, { chunkRows })
      assert.equal(parts.metrics, whole.metrics)
      assert.equal(parts.gradHidden, whole.gradHidden)
    }
    assert.equal(
      call(head, objective, { chunkRows: 11 }),
      call(head, objective, { chunkRows: 11 }),
      'same bits',
    )
  }
})

test('gspo: sequences that go on from chunk to chunk', () => {
  const objective = gspo({ clipLow: 0.1, clipHigh: 0.1, entropyCoef: 0.05 })
  const head = makeHead('float32', objective, 4)
  head.sequenceOffsets = Int32Array.of(0, 0, 5, 6, 19, N)
  for (let b = 0; b + 1 < head.sequenceOffsets.length; ++b) {
    for (let i = head.sequenceOffsets[b]!; i < head.sequenceOffsets[b + 1]!; ++i) {
      if (masked(i)) continue
      head.tokenWeights[i] = 0.1 + b
      head.advantages[i] = b - 2.5
      head.policyWeights[i] = 1 + b
    }
  }
  check('gspo', head, objective)
})

test('per-token values', () => {
  const objective = objectiveFor('forward')
  const head = makeHead('float32', objective, 5)
  const want = byFormula(head, objective, exact).rows
  const naive = byFormula(head, objective, float32).rows
  onDevice(head, objective, ({ batch }) => {
    const kl = DeviceArray.allocate('float32', [N])
    const clipped = DeviceArray.allocate('uint8', [N])
    fusedHeadLossOnDevice(batch, objective, { chunkRows: chunk, perToken: { kl, clipped } })
    const values = kl.download<Float32Array>()
    want.forEach((row, i) => {
      const allowed = row ? 2 * Math.abs(naive[i]!.kl - row.kl) + 4 * u32 * row.klScale : 0
      assert.ok(Math.abs(values[i]! - (row?.kl ?? 0)) <= allowed, `row ${i}: ${values[i]}, want ${row?.kl}`)
    })
    assert.equal(
      [...clipped.download()],
      want.map(row => row?.clipped ?? 0),
    )
    kl.dispose()
    clipped.dispose()
  })
})

test('gradients that are not wanted, in place, in float32, in rows that lie apart; asynchronously', async () => {
  const objective = objectiveFor('reverse-k3')
  const head = makeHead('bfloat16', objective, 6)
  const want = call(head, objective)
  const pending = onDevice(head, objective, ({ batch, gradHidden, gradWeight }) => {
    const options = { chunkRows: chunk }
    assert.equal(fusedHeadLossOnDevice(batch, objective, options).metrics, want.metrics)
    assert.equal(gradWeight.download(), head.before)
    fusedHeadLossOnDevice(batch, objective, { ...options, gradHidden })
    assert.equal(gradHidden.download(), want.gradHidden)
    const wide = DeviceArray.allocate('float32', [N, C])
    fusedHeadLossOnDevice(batch, objective, { ...options, gradHidden: wide })
    // Products into another dtype may add up in another order on a device.
    if (emulated) assert.equal(toLogits(wide.download<Float32Array>(), 'bfloat16'), want.gradHidden)
    wide.dispose()

    const apart = (values: Float64Array, rows: number, columns: number) => {
      const whole = new Float64Array(1 + rows * (columns + 5)).fill(Number.NaN)
      for (let i = 0; i < rows; ++i) {
        whole.set(values.subarray(i * columns, (i + 1) * columns), 1 + i * (columns + 5))
      }
      const array = DeviceArray.from(toLogits(whole, 'bfloat16'), { dtype: 'bfloat16' })
      return array.view(1, [rows, columns], [columns + 5, 1])
    }
    const spread = {
      ...batch,
      hidden: apart(head.hidden, N, C),
      weight: apart(head.weight, V, C),
      refHidden: apart(head.refHidden, N, refC),
      refWeight: apart(head.refWeight, V, refC),
    }
    const sums = DeviceArray.from(new Float32Array(V * (C + 3)).fill(2), { shape: [V, C + 3] })
    const gradients = { gradHidden: spread.hidden, gradWeight: sums.view(0, [V, C], [C + 3, 1]) }
    const { metrics } = fusedHeadLossOnDevice(spread, objective, { ...options, ...gradients })
    // Only the emulator's products do not depend on alignment.
    if (emulated) assert.equal(metrics, want.metrics)
    const all = sums.download<Float32Array>()
    for (let v = 0; v < V; ++v)
      assert.equal(all.subarray(v * (C + 3) + C, (v + 1) * (C + 3)), Float32Array.of(2, 2, 2))
    for (let i = 0; emulated && i < N; ++i) {
      const row = spread.hidden.view(i * (C + 5), [C]).download<Uint16Array>()
      assert.equal(row, (want.gradHidden as Uint16Array).subarray(i * C, (i + 1) * C))
    }
    for (const array of [sums, spread.hidden, spread.weight, spread.refHidden, spread.refWeight])
      array.dispose()

    const settled = fusedHeadLossOnDeviceAsync(batch, objective, { ...options, gradHidden: batch.hidden })
    assert.match(errorOf(() => batch.weight.dispose()).message, /in use by a call that has not settled/)
    return settled.then(({ metrics }) => assert.equal(metrics, want.metrics))
  })
  await pending
})

test('a workspace of the caller: nothing is allocated, chunks that it holds', () => {
  const objective = objectiveFor('forward')
  const head = makeHead('bfloat16', objective, 7)
  const want = call(head, objective, { chunkRows: 11 })
  const bytes = onDevice(head, objective, ({ batch }) =>
    fusedHeadWorkspace(batch, objective, { chunkRows: 11 }),
  )
  onDevice(head, objective, ({ batch, gradHidden, gradWeight }) => {
    const workspace = DeviceArray.allocate('uint8', [bytes])
    const options = { gradHidden, gradWeight, workspace }
    try {
      if (emulated) process.env.RAPO_CUDA_EMULATOR_CAPTURE = '1' // an allocation would be an error
      assert.equal(
        fusedHeadLossOnDevice(batch, objective, { ...options, chunkRows: 11 }).metrics,
        want.metrics,
      )
    } finally {
      delete process.env.RAPO_CUDA_EMULATOR_CAPTURE
    }
    assert.equal(gradWeight.download(), want.gradWeight)
    assert.equal(gradHidden.download(), want.gradHidden)
    gradWeight.upload(head.before)
    fusedHeadLossOnDevice(batch, objective, options) // 23 / 2 rows
    assert.equal(gradWeight.download(), want.gradWeight)
    const fails = (change: object, message: RegExp) =>
      assert.match(
        errorOf(() => fusedHeadLossOnDevice(batch, objective, { ...options, ...change })).message,
        message,
      )
    fails({ chunkRows: 12 }, /workspace has \d+ bytes, expected at least \d+ for chunks of 12 rows/)
    fails(
      { chunkRows: 1, workspace: workspace.view(16, [bytes - 16]) },
      /workspace is not aligned to 256 bytes/,
    )
    fails({ workspace: gradWeight }, /workspace is float32, expected uint8/)
    workspace.dispose()
  })
})

test('no rows at all', () => {
  const objective = rapo({ penalty: 'none', klCoef: 0 })
  const empty = DeviceArray.allocate('float32', [0])
  const ids = DeviceArray.allocate('int32', [0])
  const hidden = DeviceArray.allocate('float32', [0, C])
  const weight = DeviceArray.from(new Float32Array(V * C), { shape: [V, C] })
  const gradWeight = DeviceArray.from(new Float32Array(V * C).fill(3), { shape: [V, C] })
  const batch = { hidden, weight, tokenIds: ids, tokenWeights: empty, advantages: empty }
  assert.is(fusedHeadLossOnDevice(batch, objective, { gradWeight }).metrics.tokens, 0)
  assert.ok(gradWeight.download<Float32Array>().every(x => x === 3))
  for (const array of [empty, ids, hidden, weight, gradWeight]) array.dispose()
})

if (emulated) {
  test('rows of a chunk come from the free memory', () => {
    const objective = objectiveFor('forward')
    const head = makeHead('float32', objective, 7)
    const [eleven, all] = [11, N].map(chunkRows => call(head, objective, { chunkRows }).gradWeight)
    assert.not.equal(eleven, all, 'the size of the chunks shows in roundings')
    assert.equal(call(head, objective, {}).gradWeight, all)
    try {
      // Half of it: the products' 32 MiB, a hundred bytes for each of the 23 rows, and 11 rows of two matrices of 816
      // bytes a row, but not all 23 rows, the number that is tried before.
      process.env.RAPO_CUDA_EMULATOR_FREE = String(2 * (2 ** 25 + 30_000))
      assert.equal(call(head, objective, {}).gradWeight, eleven)
      process.env.RAPO_CUDA_EMULATOR_FREE = String(2 ** 20)
      assert.is(errorOf(() => call(head, objective, {})).code, 'ERR_RAPO_OUT_OF_MEMORY')
    } finally {
      delete process.env.RAPO_CUDA_EMULATOR_FREE
    }
  })

  test('without cuBLASLt', () => {
    const objective = objectiveFor('forward')
    try {
      process.env.RAPO_CUDA_EMULATOR_NO_CUBLASLT = '1'
      const { code, message } = errorOf(() => call(makeHead('float32', objective, 1), objective))
      assert.is(code, 'ERR_RAPO_DEVICE')
      assert.match(message, /cuBLASLt is missing/)
    } finally {
      delete process.env.RAPO_CUDA_EMULATOR_NO_CUBLASLT
    }
  })
}

test('mistakes are named before anything is written', () => {
  const objective = objectiveFor('forward')
  const head = makeHead('bfloat16', objective, 8)
  onDevice(head, objective, ({ batch, gradHidden, gradWeight }) => {
    gradHidden.upload(new Uint16Array(N * C).fill(5))
    const fails = (change: object, options: object, message: RegExp, changed = objective) => {
      const { code, message: got } = errorOf(() =>
        fusedHeadLossOnDevice({ ...batch, ...change }, changed, {
          gradHidden,
          gradWeight,
          chunkRows: chunk,
          ...options,
        }),
      )
      assert.is(code, 'ERR_RAPO_INVALID_ARGUMENT')
      assert.match(got, message)
      assert.equal(gradWeight.download(), head.before)
      assert.ok(gradHidden.download<Uint16Array>().every(x => x === 5))
    }
    const none = rapo({ penalty: 'none', klCoef: 0 })
    const temporary: DeviceArray[] = []
    const array = (dtype: 'float32' | 'float16' | 'bfloat16', shape: number[]) => {
      temporary.push(DeviceArray.allocate(dtype, shape))
      return temporary.at(-1)!
    }
    fails({ hidden: undefined }, {}, /hidden must be a DeviceArray/)
    fails({ hidden: array('float16', [N, C]) }, {}, /hidden is float16, expected float32 or bfloat16/)
    fails({ hidden: array('bfloat16', [N, 0]) }, {}, /hidden has no channels/)
    fails({ weight: undefined }, {}, /weight must be a DeviceArray/)
    fails({ weight: array('float32', [V, C]) }, {}, /weight is float32, expected bfloat16/)
    fails(
      { weight: array('bfloat16', [V, C + 1]) },
      {},
      /weight has the shape \(203, 20\), expected \(203, 19\)/,
    )
    fails(
      { refHidden: undefined, refWeight: undefined },
      {},
      /refHidden is missing, and the penalty forward needs/,
    )
    fails({ refHidden: undefined }, {}, /refHidden is missing, and refWeight/)
    fails({ refWeight: undefined }, {}, /refWeight is missing/)
    fails({ refWeight: batch.weight }, {}, /refWeight has the shape \(203, 19\), expected \(203, 13\)/)
    fails({ refHidden: array('bfloat16', [N + 1, refC]) }, {}, /refHidden has the shape \(24, 13\)/)
    fails({ refWeights: undefined }, {}, /refHidden is given, but the penalty is none/, none)
    fails({ tokenIds: batch.advantages }, {}, /tokenIds is float32, expected int32/)
    fails({ tokenWeights: undefined }, {}, /tokenWeights is missing/)
    fails({ sequenceOffsets: batch.tokenIds }, {}, /only the surrogate gspo reads them/)
    fails({}, { gradHidden: array('float16', [N, C]) }, /gradHidden is float16, expected bfloat16 or float32/)
    fails({}, { gradWeight: array('bfloat16', [V, C]) }, /gradWeight is bfloat16, expected float32/)
    fails({}, { gradWeight: array('float32', [C, V]) }, /gradWeight has the shape/)
    for (const chunkRows of [0, 1.5, -1])
      fails({}, { chunkRows }, /chunkRows is .*, expected a whole number >= 1/)
    const overlaps = (options: object, names: string) =>
      fails({}, options, new RegExp(`${names.replace(' ', ' overlaps ')}$`))
    const wide = DeviceArray.allocate('float32', [N, C])
    temporary.push(wide)
    overlaps({ perToken: { kl: batch.advantages } }, 'kl advantages')
    overlaps({ perToken: { ratio: batch.oldLogprobs } }, 'ratio oldLogprobs')
    overlaps({ perToken: { kl: wide.view(0, [N]), entropy: wide.view(1, [N]) } }, 'kl entropy')
    overlaps({ perToken: { kl: gradWeight.view(0, [N]) } }, 'gradWeight kl')
    const bytes = { dtype: { code: 1, bits: 8, lanes: 1 }, shape: [4 * V * C], strides: [1] } as const
    overlaps({ workspace: DeviceArray.wrap({ ...gradWeight.toDLPack(), ...bytes }) }, 'gradWeight workspace')
    // In the last chunk: nothing of those before it has been added.
    const ids = head.tokenIds.slice()
    ids[N - 1] = V
    batch.tokenIds.upload(ids)
    fails({}, {}, /tokenIds\[22\] is 203, outside \[0, 203\)/)
    for (const used of temporary) used.dispose()
  })
})

test('logits that are not finite: the row, and the element of hidden', () => {
  const objective = objectiveFor('forward')
  const broken = makeHead('float32', objective, 9)
  broken.hidden[16 * C + 2] = Number.NaN
  broken.hidden[20 * C] = Number.NaN
  const { code, message } = errorOf(() => call(broken, objective))
  assert.is(code, 'ERR_RAPO_NON_FINITE')
  assert.match(message, /^row 16: the logits of hidden\[16\] and weight have NaN.*: hidden\[16, 2\] is NaN$/)
  const reference = makeHead('float32', objective, 9)
  reference.refHidden[9 * refC + 4] = Infinity
  assert.match(
    errorOf(() => call(reference, objective)).message,
    /^row 9: the logits of refHidden.*refHidden\[9, 4\] is \+inf$/,
  )
})

test.run()
