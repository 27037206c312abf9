import { existsSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { formatDryRun } from '../../lib/cli/dry-run.js'
import type { LoadPolicy } from '../../lib/model/policy.js'
import { dryRun } from '../../lib/train/dry-run.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'
import { makeConfig } from '../helpers/train-child.js'

const model = makeFakeModel({ 1: Math.log(5), 10: Math.log(5) })

test('a dry run: the first problem in the template, a group of it judged, nothing written', async () => {
  const output = path.join(makeTempDir(), 'run')
  const config = makeConfig(output, model, { sampling: { groupSize: 6 } })
  config.data.template = '1 {prompt}2'
  const prompts: number[][] = []
  let isOpen = false
  const loadPolicy: LoadPolicy = async (dir, options) => {
    assert.is(options?.trainable, false)
    const policy = await loadFakePolicy(dir, options)
    isOpen = true
    return {
      ...policy,
      generate(packed, ...rest) {
        prompts.push([...packed.tokenIds])
        return policy.generate(packed, ...rest)
      },
      async dispose() {
        isOpen = false
      },
    }
  }
  const { prompt, promptTokens, rollouts, problem, room } = await dryRun(config, { loadPolicy })
  assert.is(prompt, `1 ${problem.prompt}2`)
  assert.equal(prompts.length, 1)
  assert.is(prompts[0]!.length, promptTokens)
  assert.is(rollouts.length, 6)
  assert.not(isOpen)
  assert.is(room, undefined)
  assert.not(existsSync(output))
  const again = await dryRun(config, { loadPolicy })
  assert.equal(again.rollouts, rollouts)
})

test('a dry run finds what training would find, and lets the model go', async () => {
  const config = makeConfig(path.join(makeTempDir(), 'run'), model)
  const verifier = path.join(makeTempDir(), 'broken.mjs')
  writeFileSync(verifier, 'export default () => { throw new Error("it broke") }')
  config.task.verifier = verifier
  let disposed = 0
  const loadPolicy: LoadPolicy = async (dir, options) => {
    const policy = await loadFakePolicy(dir, options)
    return {
      ...policy,
      async dispose() {
        disposed++
      },
    }
  }
  await dryRun(config, { loadPolicy }).then(assert.unreachable as never, error =>
    assert.match(error.message, /the verifier failed on problem .*: it broke/),
  )
  assert.is(disposed, 1)
})

test('what is printed: prompt, answer, some completions whole, the group, what it lacks', async () => {
  const config = makeConfig(path.join(makeTempDir(), 'run'), model)
  const found = await dryRun(config, { loadPolicy: loadFakePolicy })
  const rollout = found.rollouts[0]!
  const group = (rewards: number[]) =>
    rewards.map((reward, i) => ({
      ...rollout,
      reward,
      reason: `reason ${i}`,
      completion: `text ${i}`,
      completionIds: Int32Array.of(5, 6),
      finishReason: i === 0 ? ('length' as const) : ('stop' as const),
    }))
  const text = formatDryRun({
    ...found,
    prompt: 'two\nlines',
    promptTokens: 1,
    rollouts: group([0, 1, 0, 0, 0, 3]),
  })
  assert.match(
    text,
    `the prompt of problem "${found.problem.id}" as the model gets it, 1 token:\n  two\n  lines\n`,
  )
  assert.match(
    text,
    'completion 1 of 6, 2 tokens, cut off by sampling.maxNewTokens:\n  text 0\nreward 0: reason 0\n',
  )
  assert.match(text, 'completion 2 of 6, 2 tokens, ended by itself:\n  text 1\nreward 1: reason 1\n')
  assert.match(text, 'text 3')
  assert.not.match(text, 'text 4')
  assert.match(text, 'the group of 6: rewards 0 to 3, mean 0.667; 12 tokens, 1 of 6 completions cut off\n')
  assert.not.match(text, 'all rewards are equal')
  assert.match(text, /nothing was written$/)
  assert.match(formatDryRun({ ...found, rollouts: group([0.1, 0.1, 0.1]) }), 'all rewards are equal')
})

test.run()
