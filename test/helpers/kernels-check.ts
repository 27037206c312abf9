/**
 * Compares results of the kernels with the formula in double precision.
 *
 * Tolerances. Let e be the error of the plain float32 formula on the same inputs: the same operations, each rounded to float32,
 * with pairwise sums. A result of the kernels may be off by 2 e plus four roundings of the largest term; the latter covers
 * inputs on which the plain formula happens to be exact. A gradient stored in half precision may be off by one more rounding of
 * that type.
 */
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { type KernelDevice, type LogitsDType, policyLoss } from '../../lib/loss/kernels.js'
import { type Objective, type ObjectiveMetrics, type Penalty, rapo } from '../../lib/loss/objective.js'
import { type Case, fromLogits } from './kernels-cases.js'
import { exact, type FormulaResult, float32, formula, formulaMetrics, u32 } from './kernels-formula.js'

export const dtypes: LogitsDType[] = ['float32', 'bfloat16', 'float16']
const rounding = { float32: 0, bfloat16: 2 ** -8, float16: 2 ** -11 }
/** Half the distance between the smallest numbers of the type: the rounding error near 0. */
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

export function expectedOf({ rows }: Pick<Case, 'rows'>, objective: Objective): Expected {
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
      if (got[i] === w) return // also if both are -inf
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
  assert.is(loss, metrics.loss, name)
  checkMetrics(name, metrics, { want, naive })
}

/** Compares every metric. Counts must be equal; sums may be off by as much as their terms. */
export function checkMetrics(name: string, metrics: ObjectiveMetrics, { want, naive }: Expected): void {
  const expected = formulaMetrics(present(want))
  const sums = {
    loss: 'loss',
    klSum: 'kl',
    entropySum: 'entropy',
    ratioSum: 'ratio',
    approxKlSum: 'approxKl',
  } as const
  const extremes = { ratioMin: 'ratio', ratioMax: 'ratio' } as const
  const off = (w: FormulaResult, i: number, part: (typeof sums)[keyof typeof sums]) =>
    2 * Math.abs(w[part] - naive[i]![part]) + 4 * u32 * lossScale(w)
  for (const field of Object.keys(expected) as (keyof ObjectiveMetrics)[]) {
    let allowed = 0
    want.forEach((w, i) => {
      if (w && field in sums) allowed += off(w, i, sums[field as keyof typeof sums])
      if (w && field in extremes) allowed = Math.max(allowed, off(w, i, 'ratio'))
    })
    const [got, wanted] = [metrics[field], expected[field]]
    assert.ok(
      got === wanted || Math.abs(got - wanted) <= allowed,
      `${name} ${field} ${got}, want ${wanted} ± ${allowed}`,
    )
  }
}

/** The size of the numbers that a row's share of the sums is made of. */
export function lossScale(r: FormulaResult): number {
  return Math.max(1, Math.abs(r.loss), Math.abs(r.logprob)) + r.klScale
}

/** Code and message of the RapoError that the function throws. */
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
