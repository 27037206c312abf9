/** gspo: the one surrogate that ties rows together, and the weights on the policy term that it must not mix up. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { createRandom } from '../../lib/base/random.js'
import { type LossBatch, policyLoss, policyLossAsync } from '../../lib/loss/kernels.js'
import { addMetrics, emptyMetrics, gspo, type Objective } from '../../lib/loss/objective.js'
import { normal, raw } from '../helpers/kernels-cases.js'
import { checkMetrics, expectedOf } from '../helpers/kernels-check.js'
import { exact, type FormulaRow, float32, formula, logSoftmax, u32 } from '../helpers/kernels-formula.js'

const V = 13
// Rows: an empty sequence, masked rows at the start, inside and alone, a sequence of one row.
const offsets = Int32Array.of(0, 4, 4, 9, 10, 12, 17)
const masked = new Set([0, 6, 10, 11])
const wide = { clipLow: 0.2, clipHigh: 0.2 }

/** spread: how far the policy is from π_old; large ones put some sequences beyond the bounds. */
function sequences(seed: number, spread: number, objective: Objective) {
  const random = createRandom(seed).float
  const rows = offsets.at(-1)!
  const array = () => new Float32Array(rows)
  const batch = {
    vocabSize: V,
    logits: Float32Array.from({ length: rows * V }, () => 2 * normal(random)),
    tokenIds: Int32Array.from({ length: rows }, () => Math.floor(random() * V)),
    tokenWeights: array(),
    advantages: array(),
    policyWeights: array(),
    oldLogprobs: array(),
    sequenceOffsets: offsets,
    ...(objective.penalty !== 'none' && {
      refLogits: Float32Array.from({ length: rows * V }, () => 2 * normal(random)),
    }),
  }
  const formulaRows: (FormulaRow | undefined)[] = new Array(rows)
  for (let b = 0; b + 1 < offsets.length; ++b) {
    const [weight, advantage, policyWeight] = [
      0.1 + random(),
      (b % 2 ? -1 : 1) * (0.5 + random()),
      0.5 + random(),
    ]
    const shift = spread * normal(random)
    const logRatios: number[] = []
    for (let i = offsets[b]!; i < offsets[b + 1]!; ++i) {
      const logits = Float64Array.from(batch.logits.subarray(i * V, (i + 1) * V))
      const lp = logSoftmax(logits, 1, objective.temperature, exact)[batch.tokenIds[i]!]!
      if (masked.has(i)) {
        // Whatever else a masked row holds.
        batch.logits.fill(Number.NaN, i * V, (i + 1) * V)
        batch.oldLogprobs[i] = batch.advantages[i] = batch.policyWeights[i] = Number.NaN
        continue
      }
      batch.tokenWeights[i] = weight
      batch.advantages[i] = advantage
      batch.policyWeights[i] = policyWeight
      batch.oldLogprobs[i] = lp - shift - 0.3 * normal(random)
      logRatios.push(lp - batch.oldLogprobs[i]!)
      formulaRows[i] = {
        logits,
        refLogits: Float64Array.from(batch.refLogits?.subarray(i * V, (i + 1) * V) ?? []),
        tokenId: batch.tokenIds[i]!,
        weight: batch.tokenWeights[i]!,
        advantage: batch.advantages[i]!,
        policyWeight: batch.policyWeights[i]!,
        phi: 1,
        oldLogprob: batch.oldLogprobs[i]!,
      }
    }
    const mean = logRatios.reduce((x, y) => x + y, 0) / logRatios.length
    for (let i = offsets[b]!; i < offsets[b + 1]!; ++i) {
      if (formulaRows[i]) formulaRows[i]!.sequenceLogRatio = mean
    }
  }
  return { batch, rows: formulaRows }
}

const objectives = [
  gspo(wide),
  gspo({ ...wide, penalty: 'reverse-k3', klCoef: 0.3, entropyCoef: 0.05, temperature: 1.3 }),
  gspo({ ...wide, penalty: 'forward-score', klCoef: 0.3, ratioCap: 1.3 }),
]

test('values and gradients are the formula’s, on every instruction set', () => {
  const seen = new Set<number>()
  for (const objective of objectives) {
    for (const [seed, spread] of [0.05, 0.4, 1].entries()) {
      const { batch, rows } = sequences(seed + 1, spread, objective)
      for (const isa of raw.isas()) {
        raw.setIsa(isa)
        const { loss, gradLogits, metrics, perToken } = policyLoss(batch, objective, { perToken: true })
        checkMetrics(`${isa} gspo`, metrics, expectedOf({ rows }, objective))
        let [wantLoss, lossAllowed] = [0, 0]
        for (const [i, row] of rows.entries()) {
          if (!row) {
            assert.ok(gradLogits.subarray(i * V, (i + 1) * V).every(g => g === 0))
            continue
          }
          const want = formula(row, objective, exact)
          const naive = formula(row, objective, float32)
          assert.is(perToken.clipped[i], want.clipped)
          seen.add(want.clipped)
          // The tolerances of kernels.test.ts: twice what plain float32 loses, and four roundings.
          assert.ok(
            Math.abs(perToken.ratio[i]! - want.ratio) <= 4 * u32 * (1 + want.ratio) * (1 - want.logprob),
          )
          const lost = Math.max(...want.grad.map((g, v) => Math.abs(g - naive.grad[v]!)))
          for (let v = 0; v < V; ++v) {
            const off = Math.abs(gradLogits[i * V + v]! - want.grad[v]!)
            assert.ok(off <= 2 * lost + 4 * u32 * want.gradScale, `${isa} row ${i} ${v}: ${off}`)
          }
          wantLoss += want.loss
          lossAllowed +=
            2 * Math.abs(want.loss - naive.loss) + 4 * u32 * (1 + Math.abs(want.loss) + want.klScale)
        }
        assert.ok(Math.abs(loss - wantLoss) <= lossAllowed, `${isa}: loss ${loss}, want ${wantLoss}`)
      }
    }
  }
  assert.equal(seen, new Set([0, 1, 2]))
  raw.setIsa('')
})

test('the gradient is the slope of the loss, through the mean over the sequence', () => {
  for (const objective of objectives) {
    for (const [seed, spread] of [0.05, 0.4].entries()) {
      const { batch } = sequences(seed + 1, spread, objective)
      const rows = batch.tokenIds.length
      const wideBatch = (logits: Float64Array) => ({
        ...batch,
        rows,
        dtype: 'float64',
        logits,
        ...(batch.refLogits && { refLogits: Float64Array.from(batch.refLogits) }),
      })
      const logits = Float64Array.from(batch.logits)
      const grad = new Float64Array(rows * V)
      raw.policyLossReference({ ...wideBatch(logits), objective, gradLogits: grad, gradDtype: 'float64' })
      const lossAt = (at: number, h: number) => {
        const moved = logits.slice()
        moved[at]! += h
        return raw.policyLossReference({ ...wideBatch(moved), objective }).loss
      }
      for (let at = 0; at < logits.length; at += 3) {
        if (Number.isNaN(logits[at]!)) continue
        const h = 2 ** -12
        const slope = (step: number) => (lossAt(at, step) - lossAt(at, -step)) / (2 * step)
        const [coarse, fine] = [slope(h), slope(h / 2)]
        // As in kernels.test.ts: the error falls with h², and the two losses are rounded.
        const allowed = Math.abs(coarse - fine) + (16 * 2 ** -53 * Math.abs(lossAt(at, 0))) / h
        assert.ok(Math.abs(fine - grad[at]!) <= allowed, `${at}: gradient ${grad[at]}, slope ${fine}`)
      }
    }
  }
})

test('splitting between sequences adds up; threads and the promise give the same bits', async () => {
  const objective = objectives[1]!
  const { batch } = sequences(5, 0.4, objective)
  const whole = policyLoss(batch, objective)
  assert.equal((await policyLossAsync(batch, objective)).gradLogits, whole.gradLogits)
  let sum = { ...emptyMetrics }
  for (const [from, to] of [
    [0, 9],
    [9, 17],
  ] as const) {
    const cut = <A extends Float32Array | Int32Array>(array: A, width = 1) =>
      array.subarray(from * width, to * width) as A
    const ends = offsets.filter(o => o >= from && o <= to).map(o => o - from)
    const part = policyLoss(
      {
        vocabSize: V,
        logits: cut(batch.logits, V),
        refLogits: cut(batch.refLogits!, V),
        tokenIds: cut(batch.tokenIds),
        tokenWeights: cut(batch.tokenWeights),
        advantages: cut(batch.advantages),
        policyWeights: cut(batch.policyWeights),
        oldLogprobs: cut(batch.oldLogprobs),
        sequenceOffsets: ends,
      },
      objective,
    )
    assert.equal(part.gradLogits, whole.gradLogits.subarray(from * V, to * V))
    sum = addMetrics(sum, part.metrics)
  }
  // Two parts in double instead of one.
  assert.ok(Math.abs(sum.loss - whole.loss) <= 20 * 2 ** -52 * Math.abs(whole.loss))
})

test('without old log-probs every ratio is 1, with gradients', () => {
  const { batch } = sequences(3, 0.4, objectives[0]!)
  const { oldLogprobs: _, ...rest } = batch
  const { perToken, gradLogits } = policyLoss(rest, objectives[0]!, { perToken: true })
  assert.ok(perToken.ratio.every((ratio, i) => ratio === (masked.has(i) ? 0 : 1)))
  assert.ok(gradLogits.some(g => g !== 0))
})

test('policyWeights scale the policy term alone', () => {
  const objective = { ...objectives[1]!, surrogate: 'clip' } as Objective
  const { batch } = sequences(4, 0.1, objective)
  const { sequenceOffsets: _, ...rows } = batch
  const grad = (policyWeight: number, changes: Partial<Objective> = {}) => {
    const policyWeights = new Float32Array(batch.tokenIds.length).fill(policyWeight)
    return policyLoss({ ...rows, policyWeights }, { ...objective, ...changes }).gradLogits
  }
  const [none, one, two] = [grad(0), grad(1), grad(2)]
  // g counts 0, 1 and 2 times: equal steps, to the rounding of three float32 numbers.
  const scale = Math.max(...two.map(Math.abs))
  none.forEach((g, i) => {
    assert.ok(Math.abs(two[i]! - 2 * one[i]! + g) <= 8 * u32 * scale)
  })
  const withoutPolicyTerm = policyLoss(
    { ...rows, policyWeights: batch.policyWeights, advantages: new Float32Array(batch.tokenIds.length) },
    objective,
  ).gradLogits
  assert.equal(none, withoutPolicyTerm)
})

test('what does not fit is an error', () => {
  const objective = gspo()
  const { batch } = sequences(1, 0.1, objective)
  const bad = (changes: object, message: RegExp, chosen: Objective = objective) => {
    const call = () => policyLoss({ ...batch, ...changes } as LossBatch, chosen)
    assert.throws(call, (error: { code: string; message: string }) => {
      assert.is(error.code, 'ERR_RAPO_INVALID_ARGUMENT')
      assert.match(error.message, message)
      return true
    })
  }
  bad({ sequenceOffsets: undefined }, /sequenceOffsets is missing, and the surrogate gspo needs them/)
  bad({}, /only the surrogate gspo reads them, not clip/, { ...gspo(), surrogate: 'clip' })
  bad({ sequenceOffsets: Int32Array.of() }, /sequenceOffsets is empty/)
  bad({ sequenceOffsets: Int32Array.of(1, 17) }, /sequenceOffsets\[0\] is 1, expected 0/)
  bad({ sequenceOffsets: Int32Array.of(0, 5, 4, 17) }, /sequenceOffsets\[2\] is 4, expected at least .* 5/)
  bad(
    { sequenceOffsets: Int32Array.of(0, 16) },
    /sequenceOffsets\[1\] is 16, expected the number of rows, 17/,
  )
  bad({ sequenceOffsets: [0, 17] }, /sequenceOffsets must be a Int32Array/)
  for (const field of ['tokenWeights', 'advantages', 'policyWeights'] as const) {
    const values = batch[field].slice()
    values[5]! += 0.5
    bad({ [field]: values }, new RegExp(`${field}\\[5\\] is .* but gspo needs one value`))
  }
  for (const value of [-1, Infinity]) {
    const policyWeights = batch.policyWeights.slice()
    policyWeights[5] = value
    bad({ policyWeights }, /policyWeights\[5\] is -?(1|inf).*, expected a finite number >= 0/)
  }
})

test.run()
