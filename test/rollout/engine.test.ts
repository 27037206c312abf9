/** The rollout engine in this process: the policy's own completions, with the version of their weights. */
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { packTokens } from '../../lib/model/batch.js'
import { localEngine } from '../../lib/rollout/engine.js'
import { rolloutGroups } from '../../lib/rollout/rollout.js'
import { train } from '../../lib/train/train.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'
import { makeConfig } from '../helpers/train-child.js'

const model = makeFakeModel()
const sampling = { n: 2, maxNewTokens: 4, stopTokenIds: [1], seed: 7 }
const prompts = packTokens([[5, 6], [7]])

async function failureOf(work: Promise<unknown>): Promise<string> {
  const error = await work.then(
    () => assert.unreachable('it succeeded'),
    (error: { code?: string; message: string }) => error,
  )
  return `${error!.code}: ${error!.message}`
}

test('the completions are the policy’s, and carry the version of the last syncWeights', async () => {
  const policy = await loadFakePolicy(model)
  const engine = localEngine(policy)
  const failure = await failureOf(engine.generate(prompts, sampling))
  assert.match(failure, /ERR_RAPO_INVALID_ARGUMENT.*syncWeights/)
  await engine.syncWeights(3)
  const { versions, ...completions } = await engine.generate(prompts, sampling)
  assert.equal(completions, await policy.generate(prompts, sampling))
  assert.equal(versions, Int32Array.of(3, 3, 3, 3))
  await engine.syncWeights(4)
  assert.equal((await engine.generate(prompts, sampling)).versions, Int32Array.of(4, 4, 4, 4))
  for (const version of [-1, 0.5, Number.NaN]) {
    assert.match(await failureOf(engine.syncWeights(version)), `version is ${version}`)
  }
})

test('a completion keeps the version that its call began with', async () => {
  const policy = await loadFakePolicy(model)
  let go = () => {}
  const gate = new Promise<void>(resolve => (go = resolve))
  const slow = {
    ...policy,
    generate: async (...call: Parameters<typeof policy.generate>) => {
      await gate
      return policy.generate(...call)
    },
  }
  const engine = localEngine(slow)
  await engine.syncWeights(0)
  const sampling0 = engine.generate(prompts, sampling)
  await engine.syncWeights(1)
  go()
  assert.equal((await sampling0).versions, Int32Array.of(0, 0, 0, 0))
})

test('after close both throw, and the policy still works', async () => {
  const policy = await loadFakePolicy(model)
  const engine = localEngine(policy)
  await engine.syncWeights(0)
  await engine.close()
  assert.match(await failureOf(engine.generate(prompts, sampling)), 'closed')
  assert.match(await failureOf(engine.syncWeights(1)), 'closed')
  assert.is((await policy.generate(prompts, sampling)).finishReasons.length, 4)
})

test('close aborts a call in progress', async () => {
  const policy = await loadFakePolicy(model)
  const engine = localEngine({
    ...policy,
    generate: (_prompts, _sampling, options) =>
      new Promise((_, reject) =>
        options!.signal!.addEventListener('abort', () => reject(options!.signal!.reason)),
      ),
  })
  await engine.syncWeights(0)
  const running = failureOf(engine.generate(prompts, sampling))
  await engine.close()
  assert.match(await running, 'the rollout engine was closed')
})

test('rolloutGroups gives each rollout its version, and none for a policy', async () => {
  const policy = await loadFakePolicy(model)
  const engine = localEngine(policy)
  await engine.syncWeights(5)
  const encoded = [[5, 6], [7]].map((promptIds, i) => ({
    problem: { id: `p${i}`, prompt: 'x', answer: undefined },
    promptIds,
  }))
  const tokenizer = { decode: () => '' }
  const sampled = await rolloutGroups(engine, tokenizer, encoded, sampling)
  assert.equal(
    sampled.map(rollout => rollout.version),
    [5, 5, 5, 5],
  )
  const direct = await rolloutGroups(policy, tokenizer, encoded, sampling)
  assert.equal(
    direct.map(rollout => 'version' in rollout),
    [false, false, false, false],
  )
})

test('training samples each step from the weights after the step before', async () => {
  const output = path.join(makeTempDir(), 'run')
  const events: string[] = []
  await train(makeConfig(output, model, { run: { steps: 2 } }), {
    async loadPolicy(from, options) {
      const policy = await loadFakePolicy(from, options)
      return {
        ...policy,
        generate: (...call) => {
          events.push('generate')
          return policy.generate(...call)
        },
        step: rate => {
          events.push('step')
          return policy.step(rate)
        },
        dispose: async () => void events.push('dispose'),
      }
    },
  })
  assert.equal(events, ['generate', 'step', 'generate', 'step', 'dispose'])
})

test.run()
