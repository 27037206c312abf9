/**
 * The CUDA kernels: through the emulator of test/cuda, or on a device where RAPO_CUDA_LIBRARY names the real library
 * (npm run test:gpu runs this file too). Cases and tolerances are those of the CPU's kernels.
 */

import { test } from 'uvu'
import * as assert from 'uvu/assert'
import type { RapoError } from '../../lib/base/errors.js'
import {
  DeviceArray,
  deviceMemory,
  gatherLogprobsOnDevice,
  policyLossOnDevice,
  policyLossOnDeviceAsync,
} from '../../lib/loss/cuda.js'
import {
  gatherLogprobs,
  gatherLogprobsAsync,
  kernelsInfo,
  type Logits,
  type LogitsDType,
  type LossBatch,
  policyLoss,
  policyLossAsync,
} from '../../lib/loss/kernels.js'
import { cispo, gspo, type Penalty, penalties, rapo, sapo } from '../../lib/loss/objective.js'
import { fromLogits, makeCase, raw, small, toLogits } from '../helpers/kernels-cases.js'
import { check, dtypes, errorOf, expectedOf, objectiveFor } from '../helpers/kernels-check.js'
import { u32 } from '../helpers/kernels-formula.js'
import { buildBroken, emulated, run } from './library.js'

const device = 'cuda'
const objective = rapo({ klCoef: 0.3, entropyCoef: 0.05 })

test('there is a device', () => {
  const { cuda } = kernelsInfo()
  assert.ok(cuda.available, JSON.stringify(cuda))
  if (cuda.available) assert.is(cuda.devices[0]!.name === 'emulated on the host', emulated)
})

for (const dtype of dtypes) {
  test(`${dtype}: V = 1, 2, 17, 1000, every penalty`, () => {
    let seed = 1
    for (const V of [1, 2, 17, 1000]) {
      for (const penalty of penalties) {
        const objective = objectiveFor(penalty, [1, 0.7, 1.6][seed % 3]!)
        const case_ = makeCase(V, V === 1000 ? 16 : 48, dtype, objective, seed++)
        check(`V ${V} ${penalty}`, case_, objective, expectedOf(case_, objective), device)
      }
    }
  })
}

/** Rows that take a block several rounds, each kind of pass once; odd lengths, so that every row starts elsewhere. */
const large: [LogitsDType, Penalty, number][] = [
  ['float32', 'forward', 20001],
  ['float32', 'forward-full', 9001],
  ['bfloat16', 'reverse-full', 20003],
  ['bfloat16', 'reverse-k3', 151936],
  ['float16', 'none', 40005],
]
// npm run test:gpu runs this file under compute-sanitizer, too, which is slow; npm run mutate runs it many times.
const smallAlone = process.env.RAPO_TEST_SMALL === '1'
for (const [dtype, penalty, V] of smallAlone ? [] : large) {
  test(`${dtype}: V = ${V}, ${penalty}`, () => {
    const objective = objectiveFor(penalty)
    const case_ = makeCase(V, V > 100_000 ? 2 : 4, dtype, objective, 3)
    check(penalty, case_, objective, expectedOf(case_, objective), device)
  })
}

test('every surrogate', () => {
  const changes = { entropyCoef: 0.05, temperature: 1.3 }
  for (const objective of [
    rapo({ ...changes, ratioCap: 1.5 }),
    cispo({ ...changes, clipHigh: 0.5, clipLow: 0.4 }),
    sapo({ ...changes, penalty: 'forward', klCoef: 0.3, sapoTauNegative: 2 }),
  ]) {
    const case_ = makeCase(17, 84, 'float32', objective, 6)
    check(objective.surrogate ?? 'two-sided', case_, objective, expectedOf(case_, objective), device)
  }
})

/** Two float32 results of one formula: 64 roundings of the largest element of a row apart at most. */
function close(got: Float64Array, want: Float64Array, rowLength: number, what: string): void {
  for (let start = 0; start < want.length; start += rowLength) {
    const row = want.subarray(start, start + rowLength)
    const largest = row.reduce((x, y) => Math.max(x, Math.abs(y)), 1)
    for (let i = 0; i < rowLength; ++i) {
      const off = Math.abs(got[start + i]! - row[i]!)
      assert.ok(off <= 64 * u32 * largest, `${what} ${start / rowLength}, ${i}: ${got[start + i]}, ${row[i]}`)
    }
  }
}

function gspoBatch(): LossBatch<Float32Array> & { dtype: LogitsDType } {
  const { batch } = makeCase(13, 24, 'float32', rapo(), 1)
  const sequenceOffsets = Int32Array.of(0, 0, 7, 8, 20, 24)
  for (let b = 0; b + 1 < sequenceOffsets.length; ++b) {
    const [from, to] = [sequenceOffsets[b]!, sequenceOffsets[b + 1]!]
    for (let i = from; i < to; ++i) {
      const masked = batch.tokenWeights[i] === 0
      batch.tokenWeights[i] = masked ? 0 : 0.1 + b
      batch.advantages[i] = masked ? Number.NaN : b - 2.5
      batch.policyWeights![i] = 1 + b
    }
  }
  const { refLogits: _, refWeights: __, ...rest } = batch
  return { ...rest, logits: batch.logits as Float32Array, sequenceOffsets }
}

test('gspo: the ratios of sequences', () => {
  const objective = gspo({ clipLow: 0.1, clipHigh: 0.1, entropyCoef: 0.05 })
  const batch = gspoBatch()
  const got = policyLoss(batch, objective, { perToken: true, device })
  const want = policyLoss(batch, objective, { perToken: true })
  close(Float64Array.from(got.gradLogits), Float64Array.from(want.gradLogits), 13, 'gradient')
  close(Float64Array.from(got.perToken.ratio), Float64Array.from(want.perToken.ratio), 1, 'ratio')
  assert.equal(got.perToken.clipped, want.perToken.clipped)
  assert.ok(new Set(want.perToken.clipped).size > 1)
  assert.ok(Math.abs(got.loss - want.loss) <= 64 * u32 * Math.max(1, Math.abs(want.loss)))
})

test('a gradient in place, fresh and in float32 is the same one, and the same bits every time', () => {
  for (const dtype of dtypes) {
    for (const penalty of ['forward', 'reverse-full'] as const) {
      const objective = objectiveFor(penalty)
      const { batch } = makeCase(1001, 24, dtype, objective, 4)
      const fresh = policyLoss(batch, objective, { device, perToken: true })
      assert.equal(policyLoss(batch, objective, { device, perToken: true }), fresh)
      const wide = policyLoss(batch, objective, { device, grad: new Float32Array(24 * 1001) }).gradLogits
      assert.equal(toLogits(wide, dtype), fresh.gradLogits)
      const copy = { ...batch, logits: batch.logits.slice() }
      assert.is(policyLoss(copy, objective, { device, grad: 'in-place' }).gradLogits, copy.logits)
      assert.equal(copy.logits, fresh.gradLogits)
      const none = policyLoss(batch, objective, { device, grad: 'none' })
      assert.is(none.gradLogits, undefined)
      assert.equal(none.metrics, fresh.metrics)
    }
  }
})

test('rows go to the device in parts where its memory is small', () => {
  const { batch } = makeCase(336, 25, 'bfloat16', objective, 2)
  const want = policyLoss(batch, objective, { device, perToken: true })
  const rows = gatherLogprobs(gather(batch), { device })
  try {
    process.env.RAPO_CUDA_EMULATOR_FREE = String(4 * 3 * 336 * 4)
    const got = policyLoss(batch, objective, { device, perToken: true })
    assert.equal(got.gradLogits, want.gradLogits)
    assert.equal(got.perToken, want.perToken)
    const off = Math.abs(got.loss - want.loss)
    assert.ok(off <= 25 * 2 ** -52 * Math.abs(want.loss), 'sums of 25 terms in double, in another order')
    assert.equal(gatherLogprobs(gather(batch), { device }), rows)
  } finally {
    delete process.env.RAPO_CUDA_EMULATOR_FREE
  }
})

function gather({ vocabSize, dtype, logits }: LossBatch) {
  const rows = logits.length / vocabSize
  const clean = logits.slice()
  clean.fill(0, 0, vocabSize)
  return {
    vocabSize,
    dtype: dtype ?? 'float32',
    logits: toLogits(
      fromLogits(clean, dtype ?? 'float32').map(x => (Number.isFinite(x) ? x : 1)),
      dtype ?? 'float32',
    ),
    tokenIds: Int32Array.from({ length: rows }, (_, i) => (7 * i) % vocabSize),
    temperature: 0.7,
  }
}

test('gathering', async () => {
  for (const dtype of dtypes) {
    for (const V of [1, 17, 9001]) {
      const batch = gather(makeCase(V, 6, dtype, objectiveFor('none'), 9).batch)
      const got = gatherLogprobs(batch, { device })
      const want = gatherLogprobs(batch)
      for (const field of ['logprobs', 'entropy', 'logSumExp'] as const) {
        close(Float64Array.from(got[field]), Float64Array.from(want[field]), 6, `${dtype} V ${V} ${field}`)
      }
      assert.equal(await gatherLogprobsAsync(batch, { device }), got)
    }
  }
})

test('no rows at all', () => {
  const none = new Float32Array(0)
  const batch = {
    vocabSize: 3,
    logits: none,
    tokenIds: new Int32Array(0),
    tokenWeights: none,
    advantages: none,
  }
  const { metrics } = policyLoss(batch, rapo({ penalty: 'none', klCoef: 0 }), { device })
  assert.is(metrics.tokens, 0)
  assert.is(metrics.ratioMin, Infinity)
})

// ---- errors: those of the CPU, word for word ----

/** The same bits, NaNs among them. */
function same(got: Logits, want: Logits): void {
  const bytes = (x: Logits) => Buffer.from(x.buffer, x.byteOffset, x.byteLength)
  assert.is(Buffer.compare(bytes(got), bytes(want)), 0)
}

function onDevice(batch: LossBatch, run: (arrays: Record<string, DeviceArray>) => void): void {
  const { vocabSize, dtype = 'float32', ...arrays } = batch
  const shape = [batch.tokenIds.length, vocabSize]
  const made = Object.fromEntries(
    Object.entries(arrays).map(([name, array]) => [
      name,
      name.endsWith('ogits')
        ? DeviceArray.from(array as Logits, { dtype, shape })
        : DeviceArray.from(array as Int32Array),
    ]),
  )
  try {
    run(made)
  } finally {
    for (const array of Object.values(made)) array.dispose()
  }
}

const wrong: [string, Partial<LossBatch>][] = [
  ['NaN', { logits: Float32Array.of(1, 2, 3, 0, Number.NaN, 1) }],
  ['+inf', { logits: Float32Array.of(1, 2, 3, 0, 1, Infinity) }],
  ['only -inf', { logits: Float32Array.of(1, 2, 3, -Infinity, -Infinity, -Infinity) }],
  ['reference NaN', { refLogits: Float32Array.of(1, 1, 1, 1, 1, Number.NaN) }],
  ['reference +inf', { refLogits: Float32Array.of(1, 1, 1, Infinity, 1, 1) }],
  ['sampled token ruled out', { logits: Float32Array.of(1, 2, 3, -Infinity, 0, 0) }],
  ['both rows', { logits: new Float32Array(6).fill(Number.NaN) }],
  ['token id', { tokenIds: Int32Array.of(2, 3) }],
  ['negative token id', { tokenIds: Int32Array.of(-1, 0) }],
  ['weight', { tokenWeights: Float32Array.of(1, Infinity) }],
  ['advantage', { advantages: Float32Array.of(1, Infinity) }],
  ['φ', { refWeights: Float32Array.of(1.5, 0) }],
  ['old log-prob', { oldLogprobs: Float32Array.of(Number.NaN, 0) }],
  ['policy weight', { policyWeights: Float32Array.of(1, -1) }],
]
for (const [name, change] of wrong) {
  test(`error: ${name}`, () => {
    const batch = { ...small(), ...change }
    const want = errorOf(() => policyLoss(batch, objective))
    assert.equal(
      errorOf(() => policyLoss(batch, objective, { device })),
      want,
    )
    onDevice(batch, arrays => {
      assert.equal(
        errorOf(() => policyLossOnDevice(arrays as never, objective)),
        want,
      )
      const left = arrays.logits!.download<Float32Array>()
      const from = want.code === 'ERR_RAPO_INVALID_ARGUMENT' ? 0 : 3 // the row without a fault has its gradient
      same(left.subarray(from), batch.logits.subarray(from))
    })
  })
}

test('an infinite penalty is an error, also of the full ones', () => {
  for (const penalty of ['reverse-k1', 'forward-full', 'reverse-full'] as const) {
    const { refWeights: _, ...batch } = small()
    const side = penalty === 'forward-full' ? batch.logits : batch.refLogits!
    side[4] = -Infinity
    if (penalty === 'reverse-k1') side[3] = -Infinity
    const objective = rapo({ penalty, klCoef: 1 })
    const want = errorOf(() => policyLoss(batch, objective))
    assert.match(want.message, /is infinite/)
    assert.equal(
      errorOf(() => policyLoss(batch, objective, { device })),
      want,
    )
  }
})

test('rows of a sequence that disagree', () => {
  const batch = gspoBatch()
  batch.advantages[12] = 7
  const want = errorOf(() => policyLoss(batch, gspo()))
  assert.match(want.message, /advantages\[\d+\] is .*but gspo needs one value/)
  assert.equal(
    errorOf(() => policyLoss(batch, gspo(), { device })),
    want,
  )
  onDevice(batch, arrays => {
    assert.equal(
      errorOf(() => policyLossOnDevice(arrays as never, gspo())),
      want,
    )
  })
  const offsets = { ...gspoBatch(), sequenceOffsets: Int32Array.of(0, 30) }
  onDevice(offsets, arrays => {
    const { message } = errorOf(() => policyLossOnDevice(arrays as never, gspo()))
    assert.match(message, /sequenceOffsets\[1\] is 30, expected the number of rows, 24/)
  })
})

test('NaN is found wherever it is in a row', () => {
  const V = 9001
  const objective = rapo({ penalty: 'none', klCoef: 0 })
  for (const dtype of dtypes) {
    for (const at of [0, 1, 7, 8, 4095, 4096, 8191, 8192, V - 2, V - 1]) {
      const values = new Float64Array(2 * V)
      values[V + at] = Number.NaN
      const fill = (x: number) => new Float32Array(2).fill(x)
      const batch = {
        vocabSize: V,
        dtype,
        logits: toLogits(values, dtype),
        tokenIds: new Int32Array(2),
        tokenWeights: fill(1),
        advantages: fill(1),
      }
      const { message } = errorOf(() => policyLoss(batch, objective, { device }))
      assert.is(message, `row 1: logits[1, ${at}] is NaN`)
    }
  }
})

test('the lowest float as a mask is a mask', () => {
  // Whole vectors, a thread's whole share and single words of it, in the policy's row and in both.
  const V = 4096
  const lowest = -3.4028234663852886e38
  const fill = (x: number) => new Float32Array(2).fill(x)
  for (const penalty of ['forward', 'forward-full', 'reverse-full'] as const) {
    const logits = Float32Array.from({ length: 2 * V }, (_, i) =>
      i % 512 < 256 || i % 7 === 3 ? lowest : i % 5,
    )
    const refLogits = logits.map(x => (x === lowest ? lowest : x / 2))
    const at = Int32Array.of(256, 300)
    logits[256] = logits[V + 300] = refLogits[256] = refLogits[V + 300] = 3
    const batch = {
      vocabSize: V,
      logits,
      refLogits,
      tokenIds: at,
      tokenWeights: fill(1),
      advantages: fill(1),
      oldLogprobs: fill(-7),
    }
    const objective = objectiveFor(penalty)
    const got = policyLoss(batch, objective, { device, perToken: true })
    const want = policyLoss(batch, objective, { perToken: true })
    close(Float64Array.from(got.gradLogits), Float64Array.from(want.gradLogits), V, penalty)
    close(Float64Array.from(got.perToken.kl), Float64Array.from(want.perToken.kl), 2, `${penalty} kl`)
  }
})

// ---- arrays on the device ----

test('a device array: upload, download, views, DLPack, disposal', () => {
  const values = Float32Array.from({ length: 12 }, (_, i) => i)
  const array = DeviceArray.from(values, { shape: [3, 4] })
  assert.equal(array.shape, [3, 4])
  assert.equal(array.strides, [4, 1])
  assert.is(array.length, 12)
  assert.equal(array.download(), values)
  const row = array.view(4, [4])
  assert.is(row.pointer, array.pointer + 16n)
  row.upload(Float32Array.of(9, 8, 7, 6))
  assert.equal(array.download<Float32Array>().subarray(3, 9), Float32Array.of(3, 9, 8, 7, 6, 8))
  const tensor = array.toDLPack()
  assert.equal(tensor, {
    data: array.pointer,
    device: { type: 2, id: 0 },
    dtype: { code: 2, bits: 32, lanes: 1 },
    shape: [3, 4],
    strides: [4, 1],
  })
  const wrapped = DeviceArray.wrap(tensor)
  assert.equal(wrapped.download(), array.download())
  wrapped.dispose()
  assert.equal(array.download<Float32Array>()[0], 0, 'whoever wraps memory does not own it')
  const apart = array.view(1, [3, 2], [4, 1])
  assert.not(apart.dense)
  const invalid = (run: () => unknown, message: RegExp) => assert.match(errorOf(run).message, message)
  invalid(() => apart.download(), /copy a view of each/)
  invalid(() => array.view(1, [3, 4]), /outside the array's 12 elements/)
  invalid(() => array.upload(new Float32Array(3)), /the array has 3 elements, the device array 12/)
  invalid(() => array.upload(new Int32Array(12)), /must be a Float32Array/)
  invalid(() => DeviceArray.allocate('int8' as 'int32', [1]), /dtype is int8/)
  invalid(() => DeviceArray.allocate('int32', [-1]), /shape is \(-1\)/)
  invalid(() => DeviceArray.allocate('int32', [1], { device: 'cpu' }), /device is cpu/)
  invalid(() => DeviceArray.allocate('int32', [1], { device: 'cuda:7' }), /device is 7, outside \[0, 1\)/)
  invalid(() => DeviceArray.wrap({ ...tensor, dtype: { code: 2, bits: 64, lanes: 1 } }), /bits 64/)
  array[Symbol.dispose]()
  array.dispose()
  invalid(() => array.pointer, /has been disposed/)
  invalid(() => row.download(), /has been disposed/)
  const { free, total } = deviceMemory()
  assert.ok(free > 0 && free <= total)
  assert.is(errorOf(() => DeviceArray.allocate('float32', [2 ** 40])).code, 'ERR_RAPO_OUT_OF_MEMORY')
})

test('device memory that nobody holds any more is collected', async () => {
  // More than the emulated device has in all; V8 collects since it is told what the small objects hold.
  for (let i = 0; emulated && i < 40; ++i) {
    DeviceArray.allocate('uint8', [2 ** 30])
    await new Promise(resolve => setImmediate(resolve))
  }
})

test('the loss of device arrays: the bits of host arrays, per-token values, rows that lie apart', async () => {
  const V = 1003
  for (const dtype of dtypes) {
    for (const penalty of ['forward', 'forward-full'] as const) {
      const objective = objectiveFor(penalty)
      const { batch } = makeCase(V, 9, dtype, objective, 2)
      const want = policyLoss(batch, objective, { device, perToken: true })
      onDevice(batch, arrays => {
        const kl = DeviceArray.allocate('float32', [9])
        const grad = DeviceArray.allocate(dtype, [9, V])
        const got = policyLossOnDevice(arrays as never, objective, { grad, perToken: { kl } })
        assert.equal(got.metrics, want.metrics)
        assert.equal(grad.download(), want.gradLogits)
        assert.equal(kl.download(), want.perToken.kl)
        same(arrays.logits!.download(), batch.logits)
        // Three matrices whose rows start at three different places within 16 bytes.
        const spread = (array: Logits, start: number, stride: number) => {
          const whole = toLogits(new Float64Array(start + 9 * stride).fill(Number.NaN), dtype)
          for (let i = 0; i < 9; ++i) whole.set(array.subarray(i * V, (i + 1) * V), start + i * stride)
          return DeviceArray.from(whole, { dtype }).view(start, [9, V], [stride, 1])
        }
        const logits = spread(batch.logits, 1, V + 3)
        const refLogits = spread(batch.refLogits!, 2, V + 8)
        const out = DeviceArray.allocate('float32', [9 * (V + 6)])
        const apart = policyLossOnDevice({ ...arrays, logits, refLogits } as never, objective, {
          grad: out.view(3, [9, V], [V + 5, 1]),
        })
        const exact = policyLoss(batch, objective, { device, grad: new Float32Array(9 * V) })
        const all = out.download<Float32Array>()
        for (let i = 0; i < 9; ++i) {
          const row = Float64Array.from(all.subarray(3 + i * (V + 5), 3 + i * (V + 5) + V))
          close(row, Float64Array.from(exact.gradLogits.subarray(i * V, (i + 1) * V)), V, `row ${i}`)
        }
        assert.ok(Math.abs(apart.loss - exact.loss) <= 64 * u32 * Math.max(1, Math.abs(exact.loss)))
        if (emulated) {
          // Nobody wrote between the rows: allocations of the emulator are filled with NaN.
          for (let i = 0; i < 8; ++i) {
            const gap = all.subarray(3 + i * (V + 5) + V, 3 + (i + 1) * (V + 5))
            assert.ok(gap.every(x => Number.isNaN(x)))
          }
        }
        for (const array of [kl, grad, logits, refLogits, out]) array.dispose()
      })
      assert.equal((await policyLossAsync(batch, objective, { device })).gradLogits, want.gradLogits)
    }
  }
})

test('gathering on the device, and its errors', () => {
  const batch = gather(makeCase(17, 6, 'float32', objectiveFor('none'), 9).batch)
  const want = gatherLogprobs(batch, { device })
  const logits = DeviceArray.from(batch.logits, { shape: [6, 17] })
  const tokenIds = DeviceArray.from(batch.tokenIds)
  const logprobs = DeviceArray.allocate('float32', [6])
  gatherLogprobsOnDevice({ logits, tokenIds, temperature: 0.7 }, { logprobs })
  assert.equal(logprobs.download(), want.logprobs)
  tokenIds.upload(Int32Array.of(0, 1, 2, 17, 4, 5))
  const { message } = errorOf(() => gatherLogprobsOnDevice({ logits, tokenIds }, { logprobs }))
  assert.is(message, 'tokenIds[3] is 17, outside [0, 17)')
  gatherLogprobsOnDevice({ logits }, { entropy: logprobs })
  for (const array of [logits, tokenIds, logprobs]) array.dispose()
})

test('mistakes with device arrays are named', () => {
  onDevice(small(), arrays => {
    const other = DeviceArray.from(new Float32Array(3))
    const fails = (change: object, message: RegExp) => {
      const { code, message: got } = errorOf(() =>
        policyLossOnDevice({ ...arrays, ...change } as never, objective),
      )
      assert.is(code, 'ERR_RAPO_INVALID_ARGUMENT')
      assert.match(got, message)
    }
    fails({ tokenIds: arrays.advantages }, /tokenIds is float32, expected int32/)
    fails({ advantages: other }, /advantages has 3 elements, expected 2/)
    fails({ refLogits: other }, /refLogits has the shape \(3\), expected \(2, 3\)/)
    fails({ refLogits: undefined }, /refLogits is missing/)
    fails({ tokenWeights: undefined }, /tokenWeights is missing/)
    fails({ logits: small().logits }, /logits must be a DeviceArray/)
    other.dispose()
  })
})

test('device arrays that are written and overlap others are refused', () => {
  onDevice(small(), arrays => {
    const { logits, refLogits, tokenIds, advantages, oldLogprobs } = arrays as Record<string, DeviceArray>
    const before = advantages!.download()
    const shared = DeviceArray.allocate('float32', [8])
    const fails = (options: object, message: RegExp) => {
      const { code, message: got } = errorOf(() => policyLossOnDevice(arrays as never, objective, options))
      assert.is(code, 'ERR_RAPO_INVALID_ARGUMENT')
      assert.match(got, message)
    }
    const as = (array: DeviceArray, dtype: 'float32' | 'uint8', shape: number[]) => {
      const type = { float32: { code: 2, bits: 32 }, uint8: { code: 1, bits: 8 } }[dtype]
      const strides = shape.map((_, i) => shape.slice(i + 1).reduce((x, y) => x * y, 1))
      return DeviceArray.wrap({ ...array.toDLPack(), dtype: { ...type, lanes: 1 }, shape, strides })
    }
    fails({ grad: refLogits }, /gradLogits overlaps refLogits/)
    fails({ perToken: { kl: advantages } }, /kl overlaps advantages/)
    fails({ perToken: { logprobs: oldLogprobs } }, /logprobs overlaps oldLogprobs/)
    fails({ perToken: { entropy: as(logits!, 'float32', [2]) } }, /(entropy overlaps|gradLogits overlaps)/)
    fails({ perToken: { ratio: as(tokenIds!, 'float32', [2]) }, grad: 'none' }, /ratio overlaps tokenIds/)
    fails({ perToken: { kl: shared.view(0, [2]), entropy: shared.view(1, [2]) } }, /kl overlaps entropy/)
    const clipped = as(shared.view(2, [2]), 'uint8', [2])
    fails({ perToken: { kl: shared.view(1, [2]), clipped } }, /kl overlaps clipped/)
    assert.equal(advantages!.download(), before)
    const gather = (outputs: object) => () =>
      gatherLogprobsOnDevice({ logits: logits!, tokenIds: tokenIds! }, outputs)
    const two = { logprobs: shared.view(0, [2]), entropy: shared.view(1, [2]) }
    assert.match(errorOf(gather(two)).message, /logprobs overlaps entropy/)
    assert.match(errorOf(gather({ entropy: as(logits!, 'float32', [2]) })).message, /entropy overlaps logits/)
    // Columns of one matrix beside each other overlap nothing, wherever in memory the matrix begins.
    const wide = DeviceArray.from(new Float32Array(20).fill(1))
    const want = policyLoss(small(), objective, { device })
    for (let begin = 0; begin < 7; ++begin) {
      const columns = (from: number) => wide.view(begin + from, [2, 3], [7, 1])
      const rows = (from: number) => [0, 7].map(row => columns(from).view(row, [3]))
      rows(0).forEach((row, i) => void row.upload(small().logits.slice(3 * i, 3 * i + 3) as Float32Array))
      policyLossOnDevice({ ...arrays, logits: columns(0) } as never, objective, { grad: columns(4) })
      rows(4).forEach((row, i) => {
        const wanted = want.gradLogits.slice(3 * i, 3 * i + 3)
        close(Float64Array.from(row.download()), Float64Array.from(wanted), 3, `from ${begin}, row ${i}`)
      })
      const call = () =>
        policyLossOnDevice({ ...arrays, logits: columns(0) } as never, objective, { grad: columns(2) })
      assert.match(errorOf(call).message, /gradLogits overlaps logits without being the same array/)
    }
    for (const array of [shared, wide]) array.dispose()
  })
})

test('arrays in use cannot be disposed', async () => {
  const { batch } = makeCase(1000, 24, 'float32', objective, 1)
  const made: DeviceArray[] = []
  const arrays = Object.fromEntries(
    Object.entries(batch)
      .filter(([, array]) => ArrayBuffer.isView(array))
      .map(([name, array]) => {
        const shape = name.endsWith('ogits') ? { shape: [24, 1000] } : {}
        made.push(DeviceArray.from(array as Float32Array, shape))
        return [name, made.at(-1)!]
      }),
  )
  const pending = policyLossOnDeviceAsync(arrays as never, objective, { grad: 'none' })
  assert.match(errorOf(() => arrays.logits!.dispose()).message, /in use by a call that has not settled/)
  const { metrics } = await pending
  assert.equal(metrics, policyLoss(batch, objective, { device, grad: 'none' }).metrics)
  for (const array of made) array.dispose()
})

test('rows beyond 2^31 elements', () => {
  if (smallAlone) return
  // Three rows of four words, 2^30 elements apart.
  const rows = 3
  const stride = 2 ** 30
  let whole: DeviceArray
  try {
    whole = DeviceArray.allocate('bfloat16', [(rows - 1) * stride + 8])
  } catch (error) {
    if (!emulated && (error as RapoError).code === 'ERR_RAPO_OUT_OF_MEMORY') return
    throw error
  }
  const { batch } = makeCase(4, rows, 'bfloat16', objectiveFor('none'), 1)
  for (let i = 0; i < rows; ++i) {
    whole.view(i * stride, [4]).upload(batch.logits.subarray(i * 4, i * 4 + 4) as Uint16Array)
  }
  const want = policyLoss(batch, objectiveFor('none'), { device })
  onDevice(batch, arrays => {
    const logits = whole.view(0, [rows, 4], [stride, 1])
    const { metrics } = policyLossOnDevice({ ...arrays, logits } as never, objectiveFor('none'))
    assert.equal(metrics, want.metrics)
  })
  for (let i = 0; i < rows; ++i) {
    assert.equal(whole.view(i * stride, [4]).download(), want.gradLogits.subarray(i * 4, i * 4 + 4))
  }
  whole.dispose()
})

if (emulated) {
  test('a call allocates nothing once it has a workspace', () => {
    const { batch } = makeCase(17, 9, 'float32', objective, 2)
    onDevice(batch, arrays => {
      const run = () => policyLossOnDevice(arrays as never, objective, { grad: 'none' }).metrics
      const want = run()
      try {
        process.env.RAPO_CUDA_EMULATOR_CAPTURE = '1'
        assert.equal(run(), want)
        assert.match(errorOf(() => DeviceArray.allocate('int32', [1])).message, /when stream is capturing/)
      } finally {
        delete process.env.RAPO_CUDA_EMULATOR_CAPTURE
      }
    })
  })
}

/** A change that breaks a kernel, and what the emulator says to it. */
const breakages: [string, string, string, RegExp][] = [
  [
    'a barrier left out',
    'put_sum(s.weighted, 1);\n  __syncthreads();\n  double',
    'put_sum(s.weighted, 1);\n  double',
    /race: read of shared memory|which nobody has written/,
  ],
  [
    'a vector too many',
    'words[i] = kLast ? load16_last(body + at * kWidth)',
    'words[i] = kLast ? load16_last(body + (at + 1) * kWidth)',
    /read of 16 bytes of global memory outside any allocation/,
  ],
  [
    'shared memory that nobody wrote',
    'const bool some = lane_index() < static_cast<int>(blockDim.x) / kWarp;\n  double',
    'const bool some = true;\n  double',
    /which nobody has written/,
  ],
  [
    'a barrier that not all threads reach',
    'put_max(s.offset, 0);\n  __syncthreads();',
    'put_max(s.offset, 0);\n  if (threadIdx.x != 3) __syncthreads();',
    /some threads wait at line|which nobody has written/,
  ],
]
// cuda-cluster.test.ts, which imports this file, need not see that again.
if (emulated && !smallAlone && !process.env.RAPO_CUDA_EMULATOR_L2) {
  test('the emulator notices kernels that are broken', async () => {
    const outcomes = breakages.map(async ([name, from, to, message], i) => {
      const library = await buildBroken(`cuda-broken-${i}`, from, to)
      const said = await run(process.execPath, ['--import', 'tsx', 'test/cuda/broken.ts'], {
        ...process.env,
        RAPO_CUDA_LIBRARY: library,
      })
      assert.match(said, message, name)
    })
    await Promise.all(outcomes)
  })
}

test('the same case by the oracle', () => {
  const { batch, rows } = makeCase(17, 24, 'float32', objective, 3)
  const grad = new Float32Array(rows.length * 17)
  const outputs = { gradLogits: grad, gradDtype: 'float32' }
  const want = raw.policyLossReference({ ...batch, ...outputs, objective, rows: rows.length })
  const got = policyLoss(batch, objective, { device })
  close(Float64Array.from(got.gradLogits as Float32Array), Float64Array.from(grad), 17, 'gradient')
  assert.is(got.metrics.tokens, want.tokens)
})

test.run()
