/**
 * Results of the kernels against the formula in double precision.
 *
 * Tolerances. A fast result may be as far from the exact one as twice what the plain float32 formula (the same
 * operations rounded to float32 one by one, sums pairwise) is from it on the same inputs, plus four roundings of the
 * largest term: those cover inputs on which the plain formula happens to be exact. Gradients stored in half precision
 * may be off by one more rounding of that type.
 */
import * as assert from 'uvu/assert'
import { RapoError } from '../lib/base/errors.js'
import { type KernelDevice, type LogitsDType, policyLoss } from '../lib/loss/kernels.js'
import { type Objective, type Penalty, rapo } from '../lib/loss/objective.js'
import { type Case, fromLogits } from './kernels-cases.js'
import { exact, type FormulaResult, float32, formula, u32 } from './kernels-formula.js'

export const dtypes: LogitsDType[] = ['float32', 'bfloat16', 'float16']
const rounding = { float32: 0, bfloat16: 2 ** -8, float16: 2 ** -11 }
/** Half the distance between the smallest numbers of the type: what rounding loses near 0. */
const smallest = { float32: 0, bfloat16: 0, float16: 2 ** -25 }

export function objectiveFor(penalty: Penalty, temperature = 1): Objective {
  return rapo({ penalty, klCoef: penalty === 'none' ? 0 : 0.3, entropyCoef: 0.05, temperature })
}

const perTokenFields = ['logprob', 'refLogprob', 'kl', 'entropy', 'ratio'] as const
const outputOf = {
  logprob: 'logprobs',
  refLogprob: 'refLogprobs',
  kl: 'kl',
  entropy: 'entropy',
  ratio: 'ratio',
} as const

export interface Expected {
  want: (FormulaResult | undefined)[]
  naive: (FormulaResult | undefined)[]
}

export function expectedOf({ rows }: Case, objective: Objective): Expected {
  return {
    want: rows.map(row => row && formula(row, objective, exact)),
    naive: rows.map(row => row && formula(row, objective, float32)),
  }
}

export const present = <T>(items: (T | undefined)[]) => items.filter(item => item !== undefined) as T[]
const largest = (values: number[]) => values.reduce((x, y) => Math.max(x, Math.abs(y)), 0)

export function check(
  name: string,
  { batch, rows }: Case,
  objective: Objective,
  { want, naive }: Expected,
  device: KernelDevice = 'cpu',
): void {
  const { loss, gradLogits, metrics, perToken } = policyLoss(batch, objective, { perToken: true, device })
  const V = batch.vocabSize
  const grad = fromLogits(gradLogits, batch.dtype)
  for (const field of perTokenFields) {
    const got = perToken[outputOf[field]]
    rows.forEach((row, i) => {
      if (!row) {
        assert.is(got[i], 0, `${name} row ${i}: masked ${field}`)
        return
      }
      const [w, n] = [want[i]![field], naive[i]![field]]
      if (got[i] === w) return // -inf among them
      const scale = Math.max(Math.abs(w), field === 'kl' ? want[i]!.klScale : Math.abs(want[i]!.logprob), 1)
      const allowed = 2 * Math.abs(n - w) + 4 * u32 * scale
      assert.ok(
        Math.abs(got[i]! - w) <= allowed,
        `${name} row ${i}: ${field} ${got[i]}, want ${w} ± ${allowed}`,
      )
    })
  }
  rows.forEach((row, i) => {
    const gradRow = grad.subarray(i * V, (i + 1) * V)
    if (!row) {
      assert.ok(
        gradRow.every(g => g === 0),
        `${name} row ${i}: masked gradient`,
      )
      return
    }
    const { grad: w, gradScale, clipped } = want[i]!
    assert.is(perToken.clipped[i], clipped, `${name} row ${i}: clipped`)
    const allowed = 2 * largest(Array.from(w, (x, v) => x - naive[i]!.grad[v]!)) + 4 * u32 * gradScale
    for (let v = 0; v < V; ++v) {
      if (batch.dtype === 'float16' && Math.abs(w[v]!) > 65504 && Math.abs(gradRow[v]!) === Infinity) continue
      const limit = allowed + Math.abs(w[v]!) * rounding[batch.dtype] + smallest[batch.dtype]
      if (!(Math.abs(gradRow[v]! - w[v]!) <= limit)) {
        assert.unreachable(`${name} row ${i}: gradient ${v} is ${gradRow[v]}, want ${w[v]} ± ${limit}`)
      }
    }
  })
  const total = (f: (r: FormulaResult) => number) => present(want).reduce((x, r) => x + f(r), 0)
  // A sum may be off by what its parts may be.
  const parts = (f: (r: FormulaResult) => number) =>
    present(want.map((w, i) => w && 2 * Math.abs(f(w) - f(naive[i]!)) + 4 * u32 * lossScale(w))).reduce(
      (x, y) => x + y,
      0,
    )
  assert.is(metrics.tokens, present(rows).length, name)
  assert.is(loss, metrics.loss, name)
  assert.ok(
    Math.abs(loss - total(r => r.loss)) <= parts(r => r.loss),
    `${name} loss ${loss}, want ${total(r => r.loss)}`,
  )
  assert.ok(Math.abs(metrics.klSum - total(r => r.kl)) <= parts(r => r.kl), `${name} klSum`)
  assert.ok(
    Math.abs(metrics.entropySum - total(r => r.entropy)) <= parts(r => r.entropy),
    `${name} entropySum`,
  )
  assert.ok(Math.abs(metrics.ratioSum - total(r => r.ratio)) <= parts(r => r.ratio), `${name} ratioSum`)
  assert.is(metrics.clippedLow, present(want).filter(r => r.clipped === 1).length, name)
  assert.is(metrics.clippedHigh, present(want).filter(r => r.clipped === 2).length, name)
}

/** What a row's share of the sums is made of. */
export function lossScale(r: FormulaResult): number {
  return Math.max(1, Math.abs(r.loss), Math.abs(r.logprob)) + r.klScale
}

/** Of the RapoError that this throws. */
export function errorOf(run: () => unknown): { code: string; message: string } {
  try {
    run()
  } catch (error) {
    assert.instance(error, RapoError, String(error))
    const { code, message } = error as RapoError
    return { code, message }
  }
  return assert.unreachable('nothing was thrown') as never
}
