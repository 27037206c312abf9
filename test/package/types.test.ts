/** The public types: what a call returns follows from what it was given. tsc checks them; running this runs the calls. */
import { expectTypeOf } from 'expect-type'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import * as rapo from '../../lib/index.js'

const rows = {
  vocabSize: 2,
  tokenIds: Int32Array.of(0),
  tokenWeights: Float32Array.of(1),
  advantages: Float32Array.of(1),
}
const batch: rapo.LossBatch<Float32Array> = { ...rows, logits: Float32Array.of(1, 0) }
const half: rapo.LossBatch<Uint16Array> = { ...rows, logits: Uint16Array.of(0, 0), dtype: 'bfloat16' }

test('the gradient has the type of the logits, or the one asked for', () => {
  const objective = rapo.dapo()
  expectTypeOf(rapo.policyLoss(batch, objective).gradLogits).toEqualTypeOf<Float32Array>()
  expectTypeOf(rapo.policyLoss(half, objective).gradLogits).toEqualTypeOf<Uint16Array>()
  const { gradLogits, perToken } = rapo.policyLoss(half, objective, {
    grad: new Float32Array(2),
    perToken: true,
  })
  expectTypeOf(gradLogits).toMatchTypeOf<Float32Array>()
  expectTypeOf(perToken).toEqualTypeOf<rapo.PerToken>()
  const none = rapo.policyLoss(batch, objective, { grad: 'none' })
  expectTypeOf(none.gradLogits).toEqualTypeOf<undefined>()
  expectTypeOf(none.perToken).toEqualTypeOf<undefined>()
  assert.is(none.gradLogits, undefined)
  assert.instance(gradLogits, Float32Array)
})

test('the async twin has the same signature', () => {
  type Settled<F extends (...args: never[]) => unknown> = Awaited<ReturnType<F>>
  expectTypeOf<Settled<typeof rapo.policyLossAsync>>().toEqualTypeOf<ReturnType<typeof rapo.policyLoss>>()
  expectTypeOf<Settled<typeof rapo.gatherLogprobsAsync>>().toEqualTypeOf<
    ReturnType<typeof rapo.gatherLogprobs>
  >()
})

test('presets take parts of an objective and return a whole one', () => {
  expectTypeOf(rapo.rapo).parameter(0).toEqualTypeOf<Partial<rapo.Objective> | undefined>()
  expectTypeOf(rapo.rapo()).toEqualTypeOf<rapo.Objective>()
  expectTypeOf<rapo.Objective['penalty']>().toEqualTypeOf<rapo.Penalty>()
  // @ts-expect-error: no such penalty
  assert.throws(() => rapo.rapo({ penalty: 'forwards' }), /penalty/)
})

test('a policy is disposed of by await using', () => {
  expectTypeOf<rapo.Policy>().toMatchTypeOf<AsyncDisposable>()
  expectTypeOf(rapo.loadPolicy).returns.resolves.toEqualTypeOf<rapo.Policy>()
  expectTypeOf<rapo.RapoError>().toMatchTypeOf<Error>()
  expectTypeOf<rapo.RapoError['code']>().toEqualTypeOf<rapo.RapoErrorCode>()
})

test.run()
