/** The kernels against the formula in double precision, every instruction set, dtype, penalty and kind of row. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { type Logits, policyLoss } from '../../lib/loss/kernels.js'
import { cispo, dapo, type ObjectiveMetrics, penalties, rapo, sapo } from '../../lib/loss/objective.js'
import { encode, fromLogits, makeCase, oracle, raw, toLogits } from '../helpers/kernels-cases.js'
import { check, dtypes, expectedOf, lossScale, objectiveFor, present } from '../helpers/kernels-check.js'
import { exact, formula, formulaMetrics } from '../helpers/kernels-formula.js'

for (const dtype of dtypes) {
  test(`every instruction set, ${dtype}: V = 1, 2, 17, 1000, every penalty`, () => {
    let seed = 1
    for (const V of [1, 2, 17, 1000]) {
      for (const penalty of penalties) {
        const objective = objectiveFor(penalty, [1, 0.7, 1.6][seed % 3]!)
        const case_ = makeCase(V, V === 1000 ? 16 : 48, dtype, objective, seed++)
        const expected = expectedOf(case_, objective)
        for (const isa of raw.isas()) {
          raw.setIsa(isa)
          check(`${isa} V ${V} ${penalty}`, case_, objective, expected)
        }
      }
    }
  })
}

/** Each of the kinds of passes once: what takes the time here is the formula, not the kernels. */
const large = {
  float32: ['forward', 'forward-full'],
  bfloat16: ['reverse-k3', 'reverse-full'],
  float16: ['none'],
} as const

for (const dtype of dtypes) {
  test(`every instruction set, ${dtype}: V = 151936`, () => {
    for (const penalty of large[dtype]) {
      const objective = objectiveFor(penalty)
      const case_ = makeCase(151936, 5, dtype, objective, penalty.length)
      const expected = expectedOf(case_, objective)
      for (const isa of raw.isas()) {
        raw.setIsa(isa)
        check(`${isa} V 151936 ${penalty}`, case_, objective, expected)
      }
    }
  })
}

test('every instruction set: a maximum that rises from block to block', () => {
  const V = 5001
  for (const penalty of ['forward', 'forward-full', 'reverse-full'] as const) {
    const objective = objectiveFor(penalty)
    const { batch, rows } = makeCase(V, 6, 'float32', objective, 1, false)
    // Up and down by 100 a row, the reference the other way: more than e^x can span, and the last element is the largest.
    rows.forEach((row, i) => {
      if (!row) return
      const slope = i % 2 ? 0.02 : -0.02
      const gentle = penalty === 'forward' ? 1 : 0.4 // or the full penalty would be all that is seen of the loss
      for (let v = 0; v < V; ++v) {
        row.logits[v] = Math.fround(slope * v * gentle)
        row.refLogits[v] = Math.fround(-slope * (V - v) * gentle)
      }
      batch.logits.set(row.logits, i * V)
      batch.refLogits!.set(row.refLogits, i * V)
    })
    const case_ = { batch, rows }
    const expected = expectedOf(case_, objective)
    for (const isa of raw.isas()) {
      raw.setIsa(isa)
      check(`${isa} rising ${penalty}`, case_, objective, expected)
    }
  }
})

test('every surrogate', () => {
  const changes = { entropyCoef: 0.05, temperature: 1.3 }
  for (const objective of [
    rapo({ ...changes, ratioCap: 1.5 }),
    cispo({ ...changes, clipHigh: 0.5, clipLow: 0.4 }),
    cispo(changes),
    sapo({ ...changes, penalty: 'forward', klCoef: 0.3, sapoTauNegative: 2 }),
  ]) {
    for (const V of [2, 17]) {
      const case_ = makeCase(V, 84, 'float32', objective, 6)
      const expected = expectedOf(case_, objective)
      check(`${objective.surrogate ?? 'two-sided'} V ${V}`, case_, objective, expected)
      const clipped = new Set(present(expected.want).map(row => row.clipped))
      if (objective.clipHigh === 0.5 || objective.ratioCap) assert.equal(clipped, new Set([0, 1, 2]))
    }
  }
})

test('the oracle is the formula', () => {
  for (const penalty of penalties) {
    for (const V of [1, 2, 17, 400]) {
      const objective = objectiveFor(penalty, 0.8)
      const case_ = makeCase(V, 48, 'float32', objective, V)
      const { metrics, grad } = oracle(case_, objective)
      const want = case_.rows.map(row => row && formula(row, objective, exact))
      // Both are double precision; 64 roundings of the largest term are what sums of a few hundred terms may lose.
      const tolerance = 64 * 2 ** -53
      const expected = formulaMetrics(present(want))
      const scale = present(want).reduce((x, r) => x + lossScale(r), 0)
      for (const field of Object.keys(expected) as (keyof ObjectiveMetrics)[]) {
        assert.ok(
          Math.abs(metrics[field] - expected[field]) <= tolerance * scale,
          `${penalty} V ${V}: ${field} ${metrics[field]}, ${expected[field]}`,
        )
      }
      want.forEach((r, i) => {
        for (let v = 0; r && v < V; ++v) {
          const off = Math.abs(grad[i * V + v]! - r.grad[v]!)
          const logits = Math.max(
            ...Array.from(case_.rows[i]!.logits, x => (Number.isFinite(x) ? Math.abs(x) : 0)),
          )
          assert.ok(
            off <= tolerance * (1 + logits) * Math.max(r.gradScale, r.klScale),
            `${penalty} V ${V} row ${i}: ${grad[i * V + v]}, ${r.grad[v]}`,
          )
        }
      })
    }
  }
})

test("the oracle's gradient is the slope of its loss", () => {
  const objectives = [
    ...penalties.map(penalty => objectiveFor(penalty, 1.3)),
    rapo({ ratioCap: 1.5 }),
    sapo({ sapoTauPositive: 2 }),
  ]
  for (const objective of objectives) {
    const name = `${objective.surrogate ?? ''} ${objective.penalty}`
    for (const V of [1, 2, 17]) {
      const case_ = makeCase(V, 48, 'float32', objective, 5)
      const logits = fromLogits(case_.batch.logits, 'float32')
      const { grad, metrics } = oracle(case_, objective)
      const slope = (at: number, h: number) => {
        const [up, down] = [logits.slice(), logits.slice()]
        up[at]! += h
        down[at]! -= h
        return (
          (oracle(case_, objective, up).metrics.loss - oracle(case_, objective, down).metrics.loss) / (2 * h)
        )
      }
      for (let at = 0; at < logits.length; at += V === 17 ? 5 : 1) {
        if (!Number.isFinite(logits[at]!)) continue
        // The error of a central difference falls with h²: a quarter at half the step, so the difference of the two
        // is three quarters of the coarser one's error. To it comes the rounding of the two losses, and of z - max.
        const h = 2 ** -12
        const [coarse, fine] = [slope(at, h), slope(at, h / 2)]
        const row = formula(case_.rows[Math.floor(at / V)]!, objective, exact)
        const rounded = Math.abs(metrics.loss) + Math.abs(logits[at]!) * row.gradScale
        const allowed = Math.abs(coarse - fine) + (16 * 2 ** -53 * rounded) / h
        assert.ok(
          Math.abs(fine - grad[at]!) <= allowed,
          `${name} V ${V} row ${Math.floor(at / V)}: gradient ${grad[at]}, slope ${fine} ± ${allowed}`,
        )
      }
    }
  }
})

test('without old log-probs every ratio is 1', () => {
  const objective = objectiveFor('forward')
  const case_ = makeCase(17, 24, 'float32', objective, 3, false)
  check('no old log-probs', case_, objective, expectedOf(case_, objective))
  const { perToken } = policyLoss(case_.batch, objective, { perToken: true })
  assert.ok(perToken.ratio.every((rho, i) => rho === (case_.rows[i] ? 1 : 0)))
})

test('the reference at φ = 0 is uniform, at φ = 1 itself', () => {
  const objective = objectiveFor('forward')
  const { batch } = makeCase(17, 1, 'float32', objective, 8)
  const refLogprob = (refWeights: Float32Array | undefined) => {
    const { refWeights: _, ...rest } = batch
    return policyLoss({ ...rest, ...(refWeights && { refWeights }) }, objective, { perToken: true }).perToken
      .refLogprobs[0]
  }
  assert.is(refLogprob(Float32Array.of(0)), Math.fround(-Math.log(17)))
  assert.is(refLogprob(Float32Array.of(1)), refLogprob(undefined))
})

test('what the reference rules out costs `forward` 1 and gives no gradient', () => {
  const objective = rapo({ klCoef: 1, entropyCoef: 0 })
  const batch = {
    vocabSize: 2,
    logits: Float32Array.of(0, 0),
    refLogits: Float32Array.of(-Infinity, 0),
    tokenIds: Int32Array.of(0),
    tokenWeights: Float32Array.of(1),
    advantages: Float32Array.of(0),
  }
  const { loss, gradLogits, perToken } = policyLoss(batch, objective, { perToken: true })
  assert.is(perToken.kl[0], 1)
  assert.is(loss, 1)
  assert.equal(gradLogits, Float32Array.of(0, 0))
})

test('log-ratios are clamped from above, and counted', () => {
  const objective = rapo({ penalty: 'reverse-k3', klCoef: 1, entropyCoef: 0, maxLogRatio: 2 })
  const batch = {
    vocabSize: 2,
    logits: Float32Array.of(0, 10),
    refLogits: Float32Array.of(10, 0),
    tokenIds: Int32Array.of(0),
    tokenWeights: Float32Array.of(1),
    advantages: Float32Array.of(-1),
    oldLogprobs: Float32Array.of(-30),
  }
  const { gradLogits, metrics, perToken } = policyLoss(batch, objective, { perToken: true })
  assert.is(perToken.kl[0], Math.fround(Math.exp(2) - 2 - 1))
  assert.is(perToken.ratio[0], Math.fround(Math.exp(2)))
  assert.is(metrics.klClamped, 1)
  assert.is(metrics.approxKlSum, Math.expm1(2) - 2)
  assert.ok(gradLogits.every(g => g === 0))
})

test('a ratio exactly at a bound is not cut off', () => {
  // Without old log-probs the ratio is exactly 1, which is the bound here.
  const at = (advantage: number, changes: object) => {
    const { gradLogits, perToken, metrics } = policyLoss(
      {
        vocabSize: 2,
        logits: Float32Array.of(0, 0),
        tokenIds: Int32Array.of(0),
        tokenWeights: Float32Array.of(1),
        advantages: Float32Array.of(advantage),
      },
      dapo({ clipLow: 0, clipHigh: 0, ...changes }),
      { perToken: true },
    )
    assert.is(perToken.clipped[0], 0)
    assert.is(metrics.clippedLow + metrics.clippedHigh, 0)
    return gradLogits[1]
  }
  assert.is(at(1, {}), 0.5)
  assert.is(at(-1, {}), -0.5)
  assert.is(at(-1, { ratioCap: 1 }), -0.5)
})

test('a gradient in half precision is rounded to nearest, ties to even, at the token, too', () => {
  // V = 2, equal logits, n = 2: the token's element is -A, the other one A.
  const tie16 = [
    1 + 2 ** -11,
    1 + 3 * 2 ** -11,
    2 ** -14 + 2 ** -25,
    2 ** -25,
    3 * 2 ** -25,
    65519,
    65520,
    65504,
    7e4,
  ]
  const tie = { bfloat16: [1 + 2 ** -8, 1 + 3 * 2 ** -8, 3e38, 2 ** -126], float16: tie16 }
  for (const dtype of ['bfloat16', 'float16'] as const) {
    const values = tie[dtype]
      .flatMap(x => [x, -x])
      .concat(0.1, 2 / 3, 2 ** -15 * 1.37, 2 ** -20 * 1.9, 12345.678)
    const A = Float32Array.from(values)
    const batch = {
      vocabSize: 2,
      dtype,
      logits: new Uint16Array(2 * A.length),
      tokenIds: new Int32Array(A.length),
      tokenWeights: new Float32Array(A.length).fill(2),
      advantages: A,
    }
    const want = Uint16Array.from([...A].flatMap(x => [encode(-x, dtype), encode(x, dtype)]))
    for (const isa of raw.isas()) {
      raw.setIsa(isa)
      assert.equal(policyLoss(batch, dapo()).gradLogits, want, `${isa} ${dtype}`)
    }
    const oracle = new Uint16Array(want.length)
    raw.policyLossReference({
      ...batch,
      rows: A.length,
      objective: dapo(),
      gradLogits: oracle,
      gradDtype: dtype,
    })
    assert.equal(oracle, want, `oracle ${dtype}`)
  }
})

test('the vector exp', () => {
  // e^x is within 1.4e-7 + 2.8e-9 |x| of itself: a rounding or two, and what ln 2 as a float is off.
  // V = 2, logits (0, x): the other token's gradient is p(x) = e^x / (1 + e^x), times a constant near 1 that both
  // multiplications round, and the sum: half an ulp, at most 2^-24, for each of the three.
  const count = 4000
  const logits = new Float32Array(2 * count)
  for (let i = 0; i < count; ++i) logits[2 * i + 1] = -(87.3 * i) / count
  const batch = {
    vocabSize: 2,
    logits,
    tokenIds: new Int32Array(count),
    tokenWeights: new Float32Array(count).fill(1),
    advantages: new Float32Array(count).fill(1),
  }
  for (const isa of raw.isas()) {
    raw.setIsa(isa)
    const { gradLogits } = policyLoss(batch, rapo({ penalty: 'none', klCoef: 0, entropyCoef: 0 }))
    for (let i = 0; i < count; ++i) {
      const e = Math.exp(logits[2 * i + 1]!)
      const want = e / (1 + e)
      const x = logits[2 * i + 1]!
      const off = Math.abs(gradLogits[2 * i + 1]! / want - 1)
      assert.ok(off <= 1.4e-7 + 2.8e-9 * -x + 3 * 2 ** -24, `${isa}: e^${x} is ${off} of itself off`)
    }
  }
})

test('alignment, row length and streaming stores change no bits', () => {
  const objective = objectiveFor('none')
  for (const dtype of dtypes) {
    for (const V of [31, 64, 1001]) {
      const rows = V === 1001 ? 2200 : 8 // 2200 rows of 1001 are more than the 4 MiB from which stores stream
      const values = Float64Array.from({ length: rows * V }, (_, i) => ((i * 7919) % 1009) / 128)
      const fill = (x: number) => new Float32Array(rows).fill(x)
      const batch = {
        vocabSize: V,
        dtype,
        logits: toLogits(values, dtype),
        tokenIds: Int32Array.from({ length: rows }, (_, i) => i % V),
        tokenWeights: fill(0.5),
        advantages: fill(-1),
      }
      const Type = batch.logits.constructor as Float32ArrayConstructor
      for (const isa of raw.isas()) {
        raw.setIsa(isa)
        const want = policyLoss(batch, objective).gradLogits
        for (const i of [0, 1, rows - 1]) {
          const alone = {
            ...batch,
            logits: batch.logits.subarray(i * V, (i + 1) * V),
            tokenIds: batch.tokenIds.subarray(i, i + 1),
            tokenWeights: fill(0.5).subarray(0, 1),
            advantages: fill(-1).subarray(0, 1),
          }
          assert.equal(policyLoss(alone, objective).gradLogits, want.subarray(i * V, (i + 1) * V))
        }
        for (const offset of [1, 3]) {
          const logits = new Type(rows * V + 16).subarray(offset, offset + rows * V)
          logits.set(batch.logits)
          const grad = new Type(rows * V + 16).subarray(16 - offset, 16 - offset + rows * V)
          policyLoss({ ...batch, logits }, objective, { grad })
          assert.ok(
            Buffer.compare(bytesOf(grad), bytesOf(want)) === 0,
            `${isa} ${dtype} V ${V} offset ${offset}`,
          )
        }
      }
    }
  }
})

const bytesOf = (x: Logits) => new Uint8Array(x.buffer, x.byteOffset, x.byteLength)

test('a float32 gradient of half-precision logits is the one of the same numbers in float32', () => {
  for (const isa of raw.isas()) {
    raw.setIsa(isa)
    for (const dtype of ['bfloat16', 'float16'] as const) {
      const objective = objectiveFor('reverse-k3')
      const { batch } = makeCase(333, 24, dtype, objective, 4)
      const widen = (x: Logits) => toLogits(fromLogits(x, dtype), 'float32')
      const wide = {
        ...batch,
        dtype: 'float32' as const,
        logits: widen(batch.logits),
        refLogits: widen(batch.refLogits!),
      }
      const got = policyLoss(batch, objective, { grad: new Float32Array(333 * 24) })
      const want = policyLoss(wide, objective)
      assert.equal(got.gradLogits, want.gradLogits)
      assert.is(got.loss, want.loss)
      const half = policyLoss(batch, objective).gradLogits
      assert.equal(half, toLogits(want.gradLogits, dtype))
    }
  }
})

test.after.each(() => raw.setIsa(''))
test.run()
