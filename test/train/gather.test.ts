/** Dynamic sampling: groups without a difference in their rewards are replaced, up to a limit. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import type { LoadPolicy, SamplingParams } from '../../lib/model/policy.js'
import type { StepMetrics } from '../../lib/train/metrics.js'
import { train } from '../../lib/train/train.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'
import { fingerprint, readLines } from '../helpers/run-files.js'
import { makeConfig } from '../helpers/train-child.js'

/** Writes 7 and the end with probability 1/6 each: most groups of 8 have no completion that is right. */
const model = makeFakeModel({ 1: Math.log(5), 10: Math.log(5) })

/** A run, with the calls of generate and the sizes of the batches that were accumulated. */
async function run(changes: Parameters<typeof makeConfig>[2], dir = model) {
  const output = path.join(makeTempDir(), 'run')
  const calls: { prompts: number; sampling: SamplingParams }[] = []
  const seen: { sequences: number; advantages: number[] }[] = []
  let optimizerSteps = 0
  const loadPolicy: LoadPolicy = async (from, options) => {
    const policy = await loadFakePolicy(from, options)
    return {
      ...policy,
      generate: (prompts, sampling, ...rest) => {
        calls.push({ prompts: prompts.offsets.length - 1, sampling })
        return policy.generate(prompts, sampling, ...rest)
      },
      accumulate: (batch, ...rest) => {
        seen.push({ sequences: batch.sequences.offsets.length - 1, advantages: [...batch.advantages] })
        return policy.accumulate(batch, ...rest)
      },
      step: rate => {
        optimizerSteps++
        return policy.step(rate)
      },
    }
  }
  const steps: StepMetrics[] = []
  const config = makeConfig(output, dir, {
    ...changes,
    run: { steps: 3, samplesPerStep: 9999, ...changes!.run },
  })
  await train(config, { loadPolicy, onStep: metrics => void steps.push(metrics) })
  return { output, calls, seen, steps, optimizerSteps, samples: readLines(output, 'samples.jsonl') }
}

const noRate = { optimizer: { learningRate: 1e-9 } }

test('groups whose rewards are all equal are replaced by further prompts', async () => {
  const { calls, seen, steps, samples } = await run({
    ...noRate,
    sampling: { filterGroups: 'reward', maxNumGenBatches: 50 },
  })
  let call = 0
  for (const [
    i,
    { step, generatedGroups, filteredFraction, zeroAdvantageFraction, tokens },
  ] of steps.entries()) {
    const own = samples.filter(sample => sample.step === step)
    assert.is(own.length, 8 * generatedGroups!)
    const groups = Array.from({ length: generatedGroups! }, (_, g) => own.slice(8 * g, 8 * g + 8))
    const mixed = groups.map(group => new Set(group.map(sample => sample.reward)).size > 1)
    // Enough, and not one group more than asked for.
    assert.is(mixed.filter(Boolean).length, 4)
    assert.ok(mixed.at(-1))
    assert.is(filteredFraction, (generatedGroups! - 4) / generatedGroups!)
    assert.is(zeroAdvantageFraction, filteredFraction)
    assert.ok(tokens > 0)
    assert.is(seen[i]!.sequences, 32)
    assert.ok(seen[i]!.advantages.every(advantage => advantage !== 0))
    // Each call asks for as many groups as are still missing.
    let [found, at] = [0, 0]
    for (; found < 4; call++) {
      assert.is(calls[call]!.prompts, 4 - found)
      const here = mixed.slice(at, at + calls[call]!.prompts)
      at += here.length
      found += here.filter(Boolean).length
    }
  }
  assert.is(call, calls.length)
  assert.ok(calls.length > 6)
  assert.is(new Set(calls.map(({ sampling }) => sampling.seed)).size, calls.length)
})

test('the first call of a step is the one that a run without filtering makes', async () => {
  const changes = { ...noRate, run: { steps: 1 } }
  const plain = await run(changes)
  const filtered = await run({ ...changes, sampling: { filterGroups: 'reward' } })
  assert.equal(filtered.calls[0], plain.calls[0])
  assert.equal(filtered.samples.slice(0, 32), plain.samples)
  assert.not('generatedGroups' in plain.steps[0]!)
})

test('at the limit the step is trained on what there is', async () => {
  const { seen, steps, calls } = await run({
    ...noRate,
    sampling: { filterGroups: 'reward', maxNumGenBatches: 2 },
    optimizer: { learningRate: 1e-9, stepsPerBatch: 4 },
    run: { steps: 8 },
  })
  const short = steps.filter(({ generatedGroups, filteredFraction }) => {
    return Math.round(generatedGroups! * (1 - filteredFraction!)) < 4
  })
  assert.ok(short.length > 0)
  assert.ok(calls.length <= 16)
  const groups = steps.map(({ generatedGroups, filteredFraction }) =>
    Math.round(generatedGroups! * (1 - filteredFraction!)),
  )
  assert.is(
    seen.reduce((sum, { sequences }) => sum + sequences, 0),
    8 * groups.reduce((sum, count) => sum + count, 0),
  )
  // An optimizer step without a group is none.
  for (const [i, { skippedSteps }] of steps.entries()) assert.is(skippedSteps, 4 - groups[i]!)
})

test('where no group has a signal, nothing is stepped, and the run goes on', async () => {
  // Never ends: no completion is right.
  const { seen, steps, optimizerSteps } = await run(
    { sampling: { filterGroups: 'reward', maxNumGenBatches: 3 }, objective: { topEntropyFraction: 0.5 } },
    makeFakeModel({ 1: -1e9 }),
  )
  assert.equal([seen.length, optimizerSteps], [0, 0])
  for (const metrics of steps) {
    const { generatedGroups, filteredFraction, loss, gradNorm, skippedSteps, tokens } = metrics
    assert.equal(
      [generatedGroups, filteredFraction, loss, gradNorm, skippedSteps, tokens],
      [12, 1, 0, 0, 1, 0],
    )
  }
})

test('acc: the verifier alone decides, whatever the other rewards are', async () => {
  const task = { rewardFuncs: ['length'] }
  const by = (filterGroups: string) =>
    run({ ...noRate, task, sampling: { filterGroups, maxNumGenBatches: 50 }, run: { steps: 1 } })
  const [reward, acc] = [await by('reward'), await by('acc')]
  // Lengths differ in nearly every group.
  assert.is(reward.steps[0]!.generatedGroups, 4)
  assert.ok(acc.steps[0]!.generatedGroups! > 4)
  assert.is(acc.steps[0]!.zeroAdvantageFraction, 0)
  assert.ok(acc.steps[0]!.filteredFraction! > 0)
  // With weight 0 the lengths make no difference.
  const zero = await run({
    ...noRate,
    task: { ...task, rewardWeights: [1, 0] },
    sampling: { filterGroups: 'reward', maxNumGenBatches: 50 },
    objective: { multiObjectiveAggregation: 'normalize-then-sum' },
    run: { steps: 1 },
  })
  assert.is(zero.steps[0]!.generatedGroups, acc.steps[0]!.generatedGroups)
})

test('a run that is killed and resumed gives the same bits', async () => {
  const changes = {
    sampling: { filterGroups: 'reward', maxNumGenBatches: 3 },
    task: { rewardFuncs: ['length'], rewardWeights: [1, 0] },
    run: { steps: 12 },
  }
  const whole = path.join(makeTempDir(), 'run')
  await train(makeConfig(whole, model, changes), { loadPolicy: loadFakePolicy })
  const generated = readLines(whole, 'metrics.jsonl').map(line => line.generatedGroups as number)
  assert.ok(generated.some(count => count > 4))
  const killed = path.join(makeTempDir(), 'run')
  for (const [place, count] of [
    ['generate', 4],
    ['accumulate', 3],
    ['generate', 9],
    ['save', 2],
    ['', 0],
  ] as const) {
    const args = [
      '--import',
      'tsx',
      'test/helpers/train-child.ts',
      'run',
      killed,
      model,
      place,
      String(count),
    ]
    const child = spawn(process.execPath, [...args, JSON.stringify(changes)], { stdio: 'inherit' })
    const [code, signal] = await once(child, 'exit')
    assert.equal([code, signal], place ? [null, 'SIGKILL'] : [0, null], `${place} ${count}`)
  }
  assert.equal(fingerprint(killed), fingerprint(whole))
})

test.run()
