/**
 * What the penalties estimate, by enumerating a small vocabulary: one row per word a, all with the same logits, each
 * weighted with the probability of a. Loss and gradient are then exact expectations.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { createRandom } from '../../lib/base/random.js'
import { policyLoss } from '../../lib/loss/kernels.js'
import { type Penalty, penalties, rapo } from '../../lib/loss/objective.js'
import { normal } from '../helpers/kernels-cases.js'
import { exact, logSoftmax } from '../helpers/kernels-formula.js'

const V = 7
const random = createRandom(42)
const row = () => Float32Array.from({ length: V }, () => 1.5 * normal(random.float))
const [policy, reference, old] = [row(), row(), row()]
const log = (logits: Float32Array, weight = 1) => logSoftmax(Float64Array.from(logits), weight, 1, exact)

/** Expectation of value and gradient over a drawn from exp(sampler). */
function expectation(penalty: Penalty, sampler: Float64Array, phi: number) {
  const repeat = (logits: Float32Array) => Float32Array.from({ length: V * V }, (_, i) => logits[i % V]!)
  const { loss, gradLogits } = policyLoss(
    {
      vocabSize: V,
      logits: repeat(policy!),
      refLogits: repeat(reference!),
      tokenIds: Int32Array.from({ length: V }, (_, a) => a),
      tokenWeights: Float32Array.from(sampler, Math.exp),
      advantages: new Float32Array(V),
      refWeights: new Float32Array(V).fill(phi),
      oldLogprobs: Float32Array.from(sampler),
    },
    rapo({ penalty, klCoef: 1, entropyCoef: 0 }),
  )
  const gradient = Array.from({ length: V }, (_, v) => {
    let sum = 0
    for (let a = 0; a < V; ++a) sum += gradLogits[a * V + v]!
    return sum
  })
  return { value: loss, gradient }
}

/** KL(a ‖ b) of log-distributions. */
const divergence = (a: Float64Array, b: Float64Array) =>
  a.reduce((x, l, v) => x + Math.exp(l) * (l - b[v]!), 0)

function truth(phi: number) {
  const [l, q] = [log(policy!), log(reference!, phi)]
  const [forward, reverse] = [divergence(q, l), divergence(l, q)]
  return {
    forward: { value: forward, gradient: Array.from(l, (x, v) => Math.exp(x) - Math.exp(q[v]!)) },
    reverse: { value: reverse, gradient: Array.from(l, (x, v) => Math.exp(x) * (x - q[v]! - reverse)) },
  }
}

/** The arrays are float32, values of a few units: sums of seven such terms. */
const tolerance = 64 * 2 ** -24
const distance = (a: readonly number[], b: readonly number[]) =>
  a.reduce((x, y, i) => Math.max(x, Math.abs(y - b[i]!)), 0)
const same = (a: readonly number[], b: readonly number[]) => distance(a, b) <= tolerance
const zero = new Array<number>(V).fill(0)

/** By penalty: which divergence the value is, and which one the gradient belongs to, on-policy. */
const onPolicy: Partial<
  Record<Penalty, ['forward' | 'reverse' | null, 'forward' | 'reverse' | 'zero' | null]>
> = {
  forward: ['forward', null],
  'forward-full': ['forward', 'forward'],
  'forward-score': ['forward', 'forward'],
  'reverse-score': ['reverse', 'reverse'],
  'reverse-k1': ['reverse', 'zero'],
  'reverse-k2': [null, 'reverse'],
  'reverse-k3': ['reverse', 'forward'],
  'reverse-full': ['reverse', 'reverse'],
}

for (const penalty of penalties.filter(name => name !== 'none')) {
  test(`${penalty}, on-policy`, () => {
    for (const phi of penalty.startsWith('forward') ? [1, 0.4, 0] : [1]) {
      const got = expectation(penalty, log(policy!), phi)
      const want = truth(phi)
      const [value, gradient] = onPolicy[penalty]!
      for (const name of ['forward', 'reverse'] as const) {
        const off = Math.abs(got.value - want[name].value)
        assert.is(off <= tolerance, value === name, `value ${got.value}, ${name} KL ${want[name].value}`)
        assert.is(same(got.gradient, want[name].gradient), gradient === name, `gradient of the ${name} KL`)
      }
      assert.is(same(got.gradient, zero), gradient === 'zero', 'gradient 0')
    }
  })
}

test('the score penalties stay unbiased under samples of another policy, the others do not', () => {
  const want = truth(1)
  for (const [penalty, name] of [
    ['forward-score', 'forward'],
    ['reverse-score', 'reverse'],
  ] as const) {
    const got = expectation(penalty, log(old!), 1)
    assert.ok(Math.abs(got.value - want[name].value) <= tolerance * 10, `${penalty}: ${got.value}`)
    assert.ok(distance(got.gradient, want[name].gradient) <= tolerance * 10, penalty)
  }
  assert.not.ok(same(expectation('reverse-k3', log(old!), 1).gradient, want.forward.gradient))
})

test('D is 0 where policy and reference agree', () => {
  const batch = {
    vocabSize: V,
    logits: policy!,
    refLogits: policy!,
    tokenIds: Int32Array.of(3),
    tokenWeights: Float32Array.of(1),
    advantages: Float32Array.of(0),
  }
  for (const penalty of penalties.filter(name => name !== 'none')) {
    const { gradLogits, perToken } = policyLoss(batch, rapo({ penalty, klCoef: 1, entropyCoef: 0 }), {
      perToken: true,
    })
    assert.is(Math.abs(perToken.kl[0]!), 0, penalty)
    if (penalty === 'reverse-k1') continue // its slope is 1 whatever d is
    const off = gradLogits.reduce((x, y) => Math.max(x, Math.abs(y)), 0)
    // The full ones subtract two numbers that were rounded by themselves; the rest are exact.
    assert.ok(off <= (penalty.endsWith('full') ? 8 * 2 ** -24 : 0), `${penalty}: gradient ${off}`)
  }
})

test.run()
