import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import type { LoadPolicy, MicroBatch, Policy, PolicyOptions, SamplingParams } from '../../lib/model/policy.js'
import { readLatestCheckpoint } from '../../lib/train/checkpoint.js'
import type { StepMetrics } from '../../lib/train/metrics.js'
import { learningRateAt } from '../../lib/train/schedule.js'
import { type TrainOptions, train } from '../../lib/train/train.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'
import { fingerprint, readLines } from '../helpers/run-files.js'
import { makeConfig } from '../helpers/train-child.js'

/** Writes 7 (id 10) and the end (id 1) with probability 1/6 each, so that one completion in 36 is right. */
const model = makeFakeModel({ 1: Math.log(5), 10: Math.log(5) })
const fake = { loadPolicy: loadFakePolicy }

async function messageOf(work: Promise<unknown>): Promise<string> {
  try {
    await work
  } catch (error) {
    return (error as RapoError).message
  }
  return assert.unreachable('nothing was thrown') as never
}

/** Runs with a policy that notes what it is called with. */
async function spy(
  changes: Parameters<typeof makeConfig>[2],
  options: TrainOptions = {},
  change: (policy: Policy) => Partial<Policy> = () => ({}),
) {
  const loads: { dir: string; options: PolicyOptions | undefined }[] = []
  const sampling: SamplingParams[] = []
  const steps: { batches: MicroBatch[]; objectives: object[]; learningRate: number }[] = []
  const loadPolicy: LoadPolicy = async (dir, options) => {
    loads.push({ dir, options })
    const policy = await loadFakePolicy(dir, options)
    let batches: MicroBatch[] = []
    let objectives: object[] = []
    return {
      ...policy,
      ...change(policy),
      generate: (prompts, params) => {
        sampling.push(params)
        return policy.generate(prompts, params)
      },
      accumulate: (batch, objective) => {
        batches.push(batch)
        objectives.push(objective)
        return policy.accumulate(batch, objective)
      },
      step: learningRate => {
        steps.push({ batches, objectives, learningRate })
        batches = []
        objectives = []
        return policy.step(learningRate)
      },
    }
  }
  const output = path.join(makeTempDir(), 'run')
  await train(makeConfig(output, model, changes), { ...options, loadPolicy })
  return { output, loads, sampling, steps }
}

test('the toy model learns the task, and the files say so', async () => {
  const output = path.join(makeTempDir(), 'run')
  const seen: StepMetrics[] = []
  const done = await train(makeConfig(output, model), { ...fake, onStep: metrics => seen.push(metrics) })
  assert.is(done, 40)
  assert.equal(
    seen.map(metrics => metrics.step),
    Array.from({ length: 40 }, (_, i) => i + 1),
  )
  const mean = (steps: StepMetrics[]) => steps.reduce((sum, step) => sum + step.rewardMean, 0) / steps.length
  assert.ok(mean(seen.slice(0, 5)) < 0.3)
  assert.ok(mean(seen.slice(-5)) > 0.8, String(mean(seen.slice(-5))))
  const lines = readFileSync(path.join(output, 'metrics.jsonl'), 'utf8').trim().split('\n')
  assert.equal(
    lines.map(line => JSON.parse(line)),
    JSON.parse(JSON.stringify(seen)),
  )
  const samples = readLines(output, 'samples.jsonl')
  assert.is(samples.length, 80)
  assert.equal(Object.keys(samples[0]!), [
    'step',
    'problemId',
    'prompt',
    'renderedPrompt',
    'completion',
    'reward',
    'reason',
    'finishReason',
  ])
  assert.is.not(samples[0]!.problemId, samples[1]!.problemId)
  // They are spread over the batch from its beginning.
  const samplesOf = async (samplesPerStep: number) => {
    const few = await spy({ run: { steps: 1, samplesPerStep } })
    return readLines(few.output, 'samples.jsonl')
  }
  const all = await samplesOf(9999)
  assert.equal(
    await samplesOf(5),
    [0, 6, 12, 19, 25].map(i => all[i]),
  )
  assert.equal(readdirSync(output).sort(), ['checkpoints', 'config.yaml', 'metrics.jsonl', 'samples.jsonl'])
  assert.equal(readdirSync(path.join(output, 'checkpoints')).sort(), ['latest', 'step-000036', 'step-000040'])
})

test('2 N steps, and N steps, a resume, N more: equal bits', async () => {
  const [whole, halves] = [path.join(makeTempDir(), 'a'), path.join(makeTempDir(), 'b')]
  const changes = { optimizer: { stepsPerBatch: 2, warmupSteps: 7 } }
  await train(makeConfig(whole, model, { ...changes, run: { steps: 22 } }), fake)
  // 11 is no multiple of saveEvery: the last step is saved all the same.
  await train(makeConfig(halves, model, { ...changes, run: { steps: 11 } }), fake)
  const config = makeConfig(halves, model, { ...changes, run: { steps: 22 } })
  let startedAt = -1
  await train(config, { ...fake, resume: true, onStart: done => (startedAt = done) })
  assert.is(startedAt, 11)
  assert.equal(fingerprint(halves), fingerprint(whole))
})

test('a data set that is smaller than a step is said at the start', async () => {
  const told: string[] = []
  const onNotice = (text: string) => void told.push(text)
  await spy({ run: { steps: 1 }, sampling: { promptsPerStep: 10 } }, { onNotice })
  assert.equal(told, [])
  await spy({ run: { steps: 1 }, sampling: { promptsPerStep: 11 } }, { onNotice })
  assert.equal(told, [
    'data.train has 10 problems, fewer than sampling.promptsPerStep, 11: a step takes some of them more than once',
  ])
})

test('another seed gives another run', async () => {
  const [a, b] = [await spy({ run: { steps: 2, seed: 1 } }), await spy({ run: { steps: 2, seed: 2 } })]
  assert.not.equal(fingerprint(a.output).samples, fingerprint(b.output).samples)
  const seeds = [...a.sampling, ...b.sampling].map(params => params.seed)
  assert.is(new Set(seeds).size, 4)
})

test('asked to stop, it finishes the step and saves; resumed, it goes on with equal bits', async () => {
  const output = path.join(makeTempDir(), 'run')
  const config = makeConfig(output, model, { run: { steps: 10 } })
  let steps = 0
  const done = await train(config, { ...fake, onStep: () => steps++, isStopping: () => steps === 2 })
  assert.is(done, 3)
  assert.is(readLatestCheckpoint(output)!.trainer.step, 3)
  // What a kill in the middle of a later save would have left.
  const stale = path.join(output, 'checkpoints', 'step-000099.tmp')
  mkdirSync(stale)
  assert.is(await train(config, { ...fake, resume: true }), 10)
  assert.not(existsSync(stale))
  const whole = path.join(makeTempDir(), 'run')
  await train(makeConfig(whole, model, { run: { steps: 10 } }), fake)
  assert.equal(fingerprint(output), fingerprint(whole))
  // Nothing left to do: nothing is done.
  const before = fingerprint(output)
  assert.is(await train(config, { ...fake, resume: true }), 10)
  assert.equal(fingerprint(output), before)
})

test('killed again and again, resumed each time: equal bits, nothing half-written', async () => {
  const [whole, killed] = [path.join(makeTempDir(), 'a'), path.join(makeTempDir(), 'b')]
  await train(makeConfig(whole, model), fake)
  mkdirSync(killed)
  // A checkpoint comes every 4 steps.
  const deaths = [
    ['onStep', 9],
    ['generate', 3],
    ['save', 2],
    ['accumulate', 2],
    ['step', 7],
    ['onStep', 2],
    [],
  ]
  for (const death of deaths) {
    const args = [
      '--import',
      'tsx',
      'test/helpers/train-child.ts',
      'run',
      killed,
      model,
      ...death.map(String),
    ]
    const [code, signal] = await once(spawn(process.execPath, args, { stdio: 'inherit' }), 'exit')
    assert.equal([code, signal], death.length ? [null, 'SIGKILL'] : [0, null], String(death))
  }
  assert.equal(fingerprint(killed), fingerprint(whole))
  assert.equal(readdirSync(killed).sort(), ['checkpoints', 'config.yaml', 'metrics.jsonl', 'samples.jsonl'])
  assert.equal(readdirSync(path.join(killed, 'checkpoints')).sort(), ['latest', 'step-000036', 'step-000040'])
})

test('every optimizer step sees its share of the groups, with weights of its own', async () => {
  const { steps } = await spy({
    run: { steps: 3 },
    optimizer: { stepsPerBatch: 2, microBatchTokens: 30, schedule: 'linear' },
    objective: { preset: 'rapo', phiMin: 0.25 },
  })
  assert.is(steps.length, 6)
  for (const { batches } of steps) {
    assert.ok(batches.length > 1)
    const sequences = batches.reduce((sum, batch) => sum + batch.sequences.offsets.length - 1, 0)
    assert.is(sequences, 16)
    // The sequence mean: the weights of all rows add up to 1, in float32.
    const total = batches.reduce((sum, batch) => sum + batch.tokenWeights.reduce((a, b) => a + b, 0), 0)
    assert.ok(Math.abs(total - 1) < 1e-6, String(total))
    for (const batch of batches) {
      assert.ok(batch.oldLogprobs!.every(value => value <= 0))
      for (const [i, phi] of batch.refWeights!.entries()) {
        // φ is .25 without the reward and 1 with it; the advantage has the reward's sign, or is 0.
        assert.ok(phi === 0.25 ? batch.advantages[i]! <= 0 : phi === 1 && batch.advantages[i]! >= 0)
      }
    }
  }
  const rates = steps.map(step => step.learningRate)
  for (const [i, share] of [1, 1, 2 / 3, 2 / 3, 1 / 3, 1 / 3].entries()) {
    assert.ok(Math.abs(rates[i]! - share) < 1e-15)
  }
})

test('the engine is told what the configuration says', async () => {
  const { loads, sampling, steps } = await spy({
    run: { steps: 1 },
    sampling: { temperature: 0.7, topP: 0.9, topK: 5, minP: 0.1 },
    objective: {
      preset: 'grpo',
      klCoef: 0.3,
      entropyCoef: 0.4,
      clipLow: 0.1,
      clipHigh: 0.5,
      maxLogRatio: 10,
    },
    optimizer: { weightDecay: 0.1, maxGradNorm: 2 },
  })
  assert.equal(loads[0], {
    dir: model,
    options: {
      dtype: 'float32',
      device: 'cpu',
      referenceDir: model,
      adamw: { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.1 },
      maxGradNorm: 2,
      recompute: false,
      stateDtype: 'float32',
      seed: 1,
      shard: 'none',
    },
  })
  const { seed, ...rest } = sampling[0]!
  assert.ok(Number.isSafeInteger(seed))
  assert.equal(rest, {
    n: 8,
    maxNewTokens: 4,
    temperature: 0.7,
    topP: 0.9,
    topK: 5,
    minP: 0.1,
    stopTokenIds: [1],
  })
  assert.equal(steps[0]!.objectives[0], {
    surrogate: 'clip',
    penalty: 'reverse-k3',
    klCoef: 0.3,
    entropyCoef: 0.4,
    clipLow: 0.1,
    clipHigh: 0.5,
    maxLogRatio: 10,
    temperature: 0.7,
  })
  // The reverse penalties are defined with φ = 1.
  assert.not('refWeights' in steps[0]!.batches[0]!)
  const { loads: without } = await spy({ run: { steps: 1 }, objective: { preset: 'dapo' } })
  assert.not('referenceDir' in without[0]!.options!)
})

test('off-policy correction: the trainer’s log-probs are the old ones, the sampler’s make the weights', async () => {
  const correction = { level: 'token', outside: 'mask', low: 0.5, high: 1.5, maxDivergence: 0.01 }
  // The fake policy's logprobs() is that of temperature 0.7, its sampler's of 0.7 too: the ratios are exactly 1.
  const { steps, output } = await spy({ run: { steps: 1 }, sampling: { temperature: 0.7 }, correction })
  const [line] = readLines(output, 'metrics.jsonl') as unknown as StepMetrics[]
  const close = (x: number | undefined) => assert.ok(Math.abs(x! - 1) < 1e-6, String(x))
  close(line!.importanceMean)
  close(line!.importanceMin)
  close(line!.importanceMax)
  assert.is(line!.importanceTruncatedFraction, 0)
  assert.is(line!.maskedFraction, 0)
  for (const { policyWeights } of steps[0]!.batches) policyWeights?.forEach(close)
})

test('the policy term can be left to the tokens of the highest entropy', async () => {
  // The fake policy is equally unsure everywhere: here it grows surer from row to row.
  const falling = ({ logprobs }: Policy): Partial<Policy> => ({
    async logprobs(...given) {
      const rows = await logprobs(...given)
      return { ...rows, entropy: rows.entropy.map((_, i) => -i) }
    },
  })
  const { steps } = await spy({ run: { steps: 1 }, objective: { topEntropyFraction: 0.25 } }, {}, falling)
  const weights = steps[0]!.batches.flatMap(batch => [...(batch.policyWeights ?? [])])
  assert.equal(new Set(weights), new Set([0, 1]))
  assert.is(weights.filter(Boolean).length, Math.ceil(weights.length / 4))
})

test('the entropy coefficient is steered, and a resumed run goes on with it', async () => {
  const objective = { entropyCoef: 0.01, entropyTarget: 50, entropyStep: 0.002 }
  const run = { steps: 4, saveEvery: 2 }
  const { steps, output } = await spy({ run, objective })
  const coefs = (from: typeof steps) =>
    from.map(step => (step.objectives[0] as { entropyCoef: number }).entropyCoef)
  const near = (values: number[], expected: number[]) =>
    expected.forEach((value, i) => {
      assert.ok(Math.abs(values[i]! - value) < 1e-12, String(values))
    })
  near(coefs(steps), [0.01, 0.012, 0.014, 0.016])
  near(
    readLines(output, 'metrics.jsonl').map(line => line.entropyCoef as number),
    [0.01, 0.012, 0.014, 0.016],
  )
  assert.ok(Math.abs(readLatestCheckpoint(output)!.trainer.entropyCoef! - 0.018) < 1e-12)
  await train(makeConfig(output, model, { run: { ...run, steps: 5 }, objective }), { ...fake, resume: true })
  near([readLines(output, 'metrics.jsonl').at(-1)!.entropyCoef as number], [0.018])
  // Without a target the coefficient is the configuration's, also where the checkpoint holds another.
  const fixed = await spy({ run: { output, steps: 6 }, objective: { entropyCoef: 0.5 } }, { resume: true })
  near(coefs(fixed.steps), [0.5])
  // Above the target it falls, and does not act.
  const above = await spy({ run: { steps: 2 }, objective: { ...objective, entropyTarget: 1e-3 } })
  near(coefs(above.steps), [0, 0])
  assert.ok(Math.abs(readLatestCheckpoint(above.output)!.trainer.entropyCoef! - 0.006) < 1e-12)
})

test('a resumed run starts from the checkpoint, and keeps the original as the reference', async () => {
  const { output } = await spy({ run: { steps: 1 } })
  const loads: [string, string | undefined][] = []
  const loadPolicy: LoadPolicy = (dir, options) => {
    loads.push([dir, options?.referenceDir])
    return loadFakePolicy(dir, options)
  }
  await train(makeConfig(output, model, { run: { steps: 2 } }), { resume: true, loadPolicy })
  assert.equal(loads, [[path.join(output, 'checkpoints', 'step-000001'), model]])
})

test('a fault of the verifier ends the run, a malformed completion does not', async () => {
  const dir = makeTempDir()
  const verifier = (name: string, body: string) => {
    const file = path.join(dir, `${name}.mjs`)
    writeFileSync(file, `export default { checkAnswer() {}, verify() { ${body} } }`)
    return file
  }
  const run = (file: string) => {
    const config = makeConfig(path.join(makeTempDir(), 'run'), model, { run: { steps: 2 } })
    return train({ ...config, task: { ...config.task, verifier: file } }, fake)
  }
  assert.is(await run(verifier('fine', "return { reward: 0, reason: 'malformed' }")), 2)
  const thrown = await messageOf(run(verifier('throws', "throw new Error('it broke')")))
  assert.match(thrown, /^the verifier failed on problem "p\d", completion ".*": it broke \(\S+:\d+:\d+\)$/)
  assert.match(
    await messageOf(run(verifier('nan', "return { reward: NaN, reason: '' }"))),
    'its reward is NaN',
  )
  assert.match(await messageOf(run(verifier('nothing', 'return'))), 'its reward is undefined')
  assert.match(await messageOf(run(verifier('rejects', "return Promise.reject(new Error('late'))"))), 'late')
  assert.match(
    await messageOf(run('countdwn')),
    'task.verifier is "countdwn"; it must be one of countdown, exact, math, or the path of a module: did you mean "countdown"?',
  )
  assert.match(await messageOf(run('./none.mjs')), 'there is no file ./none.mjs')
  writeFileSync(path.join(dir, 'empty.mjs'), '')
  assert.match(
    await messageOf(run(path.join(dir, 'empty.mjs'))),
    'its default export must be a function (completion, answer, context)',
  )
})

test('what is wrong before the first step: said at once, an earlier run stays as it was', async () => {
  const { output } = await spy({ run: { steps: 3 } })
  const before = fingerprint(output)
  const attempt = (changes: Parameters<typeof makeConfig>[2], options: TrainOptions = { overwrite: true }) =>
    messageOf(train(makeConfig(output, model, changes), { ...fake, ...options }))
  assert.match(await attempt({}, {}), 'holds a run already')
  assert.match(
    await attempt({ sampling: { maxNewTokens: 60 } }),
    /problem "p0": its prompt of 5 tokens .* exceed/,
  )
  const small: LoadPolicy = async (dir, options) => {
    const policy = await loadFakePolicy(dir, options)
    return { ...policy, info: { ...policy.info, vocabSize: 5 } }
  }
  assert.match(await attempt({}, { overwrite: true, loadPolicy: small }), 'does not fit the model')
  const config = makeConfig(output, model)
  const withData = (train: string) => ({ ...config, data: { ...config.data, train } })
  assert.match(await messageOf(train(withData(''), { ...fake, overwrite: true })), 'data.train is missing')
  const other = path.join(makeTempDir(), 'other.jsonl')
  writeFileSync(other, '{"prompt":"7=7:","answer":{"numbers":[7],"target":7}}\n{\n')
  assert.match(
    await messageOf(train(withData(other), { ...fake, overwrite: true })),
    `${other}:2: the line is not JSON`,
  )
  writeFileSync(other, '{"prompt":"7=7:","answer":{"numbers":[7],"target":7}}\n')
  assert.match(
    await messageOf(train(withData(other), { ...fake, resume: true })),
    'are not those that the checkpoint',
  )
  writeFileSync(path.join(output, 'run.lock'), String(process.ppid))
  assert.match(await attempt({}), 'is in use by process')
  assert.match(await attempt({}, { resume: true }), 'is in use by process')
  assert.equal(fingerprint(output), before)
})

test("a directory with others' files: one that the run would replace is refused, the rest is told", async () => {
  const output = makeTempDir()
  const config = makeConfig(output, model, { run: { steps: 1 } })
  const notices: string[] = []
  const attempt = (options: TrainOptions = {}) =>
    train(config, { ...fake, onNotice: text => notices.push(text), ...options })
  for (const name of ['config.yaml', 'samples.jsonl']) {
    writeFileSync(path.join(output, name), 'run: { output: elsewhere }')
    const message = await messageOf(attempt())
    assert.is(
      message,
      `${output} holds ${name}, which the run would replace: choose another --run.output, or replace it with --overwrite`,
    )
    assert.is(readFileSync(path.join(output, name), 'utf8'), 'run: { output: elsewhere }')
    rmSync(path.join(output, name))
  }
  // What a run leaves that ends before its first step.
  writeFileSync(path.join(output, 'config.yaml'), `run: { output: ${JSON.stringify(output)} }`)
  for (const name of ['a', 'b', 'c', 'd']) writeFileSync(path.join(output, name), name)
  assert.is(await attempt(), 1)
  assert.ok(notices.includes(`${output} holds other files, which stay as they are: a, b, c and 1 more`))
  assert.ok(existsSync(path.join(output, 'd')))
  notices.length = 0
  await attempt({ overwrite: true })
  for (const name of ['a', 'b', 'c', 'd']) rmSync(path.join(output, name))
  assert.ok(notices.some(text => text.includes('holds other files')))
  notices.length = 0
  await attempt({ overwrite: true })
  assert.not(notices.some(text => text.includes('holds other files')))
})

test('no checkpoint to resume from', async () => {
  const output = path.join(makeTempDir(), 'run')
  const message = await messageOf(train(makeConfig(output, model), { ...fake, resume: true }))
  assert.match(message, 'has no checkpoint to resume from')
  assert.not(existsSync(output))
})

test('the learning rate: warm-up, then the schedule', () => {
  const optimizer = { ...makeConfig('x', model).optimizer, learningRate: 1, warmupSteps: 2 }
  const rates = (schedule: 'constant' | 'linear' | 'cosine') =>
    [1, 2, 3, 4, 5, 6].map(step => Number(learningRateAt(step, { ...optimizer, schedule }, 6).toFixed(6)))
  assert.equal(rates('constant'), [0.5, 1, 1, 1, 1, 1])
  assert.equal(rates('linear'), [0.5, 1, 1, 0.75, 0.5, 0.25])
  assert.equal(rates('cosine'), [0.5, 1, 1, 0.853553, 0.5, 0.146447])
})

/** A policy that does something else at some call of one of its functions. */
function loadChanged(change: (policy: Policy, calls: () => number) => Partial<Policy>): LoadPolicy {
  return async (dir, options) => {
    const policy = await loadFakePolicy(dir, options)
    let calls = 0
    return { ...policy, ...change(policy, () => ++calls) }
  }
}

const nonFinite = new RapoError('ERR_RAPO_NON_FINITE', 'logits are not finite')

/** One micro-batch of many a step, so that there is a gradient to drop. */
const small = { optimizer: { microBatchTokens: 30 } }

/** Fails at the second micro-batch of a step. */
const failingAt = (step: number) =>
  loadChanged((policy, count) => {
    let done = 0
    return {
      accumulate: (...call) =>
        count() >= 2 && done === step - 1 ? Promise.reject(nonFinite) : policy.accumulate(...call),
      step: rate => {
        done++
        return policy.step(rate)
      },
    }
  })

test('what fails at step 9 of 50 between saves loses no step: saved beside the others, and the run goes on with equal bits', async () => {
  const run = { steps: 12, saveEvery: 50, keepCheckpoints: 1 }
  const [whole, failed] = [path.join(makeTempDir(), 'a'), path.join(makeTempDir(), 'b')]
  await train(makeConfig(whole, model, { ...small, run }), fake)
  const first = makeConfig(failed, model, { ...small, run: { ...run, steps: 3 } })
  await train(first, fake)
  const config = makeConfig(failed, model, { ...small, run })
  const error = await train(config, { loadPolicy: failingAt(6), resume: true }).catch(error => error)
  assert.is(error.code, 'ERR_RAPO_NON_FINITE')
  assert.is(error.message, `logits are not finite\nthe state after step 8 is saved in ${failed}`)
  assert.is(error.cause, nonFinite)
  assert.is(readLatestCheckpoint(failed)!.trainer.step, 8)
  // The one before stays: this state may be the cause.
  assert.equal(readdirSync(path.join(failed, 'checkpoints')).sort(), ['latest', 'step-000003', 'step-000008'])
  assert.is(await train(config, { ...fake, resume: true }), 12)
  assert.equal(fingerprint(failed), fingerprint(whole))
})

test('a failure is told as it is where nothing can be saved: before the first step, twice, or in the middle of a batch', async () => {
  const changes = { ...small, run: { steps: 12, saveEvery: 50 } }
  const messageAt = async (loadPolicy: LoadPolicy, more: object = {}) => {
    const output = path.join(makeTempDir(), 'run')
    const message = await messageOf(train(makeConfig(output, model, { ...changes, ...more }), { loadPolicy }))
    assert.is(readLatestCheckpoint(output), undefined)
    assert.not(existsSync(path.join(output, 'run.lock')))
    return message
  }
  assert.is(await messageAt(failingAt(1)), 'logits are not finite')
  // After one of the two optimizer steps of batch 2.
  assert.is(
    await messageAt(failingAt(4), { optimizer: { ...small.optimizer, stepsPerBatch: 2 } }),
    'logits are not finite',
  )
  const full: LoadPolicy = async (dir, options) => {
    const policy = await failingAt(3)(dir, options)
    return { ...policy, save: () => Promise.reject(new Error('no space')) }
  }
  assert.match(
    await messageAt(full),
    /^logits are not finite\nthe state after step 2 could not be saved: .*no space/,
  )
  // A signal's reason is passed on as it is: the rest is a warning.
  const stop = new AbortController()
  const aborted: LoadPolicy = async (dir, options) => ({
    ...(await loadFakePolicy(dir, options)),
    save: () => Promise.reject(new Error('no space')),
  })
  const warned = once(process, 'warning')
  const output = path.join(makeTempDir(), 'run')
  const options = { loadPolicy: aborted, signal: stop.signal, onStep: () => stop.abort(new Error('enough')) }
  assert.is(await messageOf(train(makeConfig(output, model, changes), options)), 'enough')
  const [warning] = await warned
  assert.match(warning.message, /^the state after step 1 could not be saved: .*no space/)
})

test('closing that fails hides no first error, and leaves no lock', async () => {
  const output = path.join(makeTempDir(), 'run')
  let isDisposed = false
  const broken: LoadPolicy = async (dir, options) => {
    const policy = await failingAt(1)(dir, options)
    const dispose = () => {
      isDisposed = true
      return Promise.reject(new Error('second'))
    }
    return { ...policy, dispose, loadState: () => Promise.reject(new Error('no state')) }
  }
  const config = makeConfig(output, model, { ...small, run: { steps: 2 } })
  assert.is(await messageOf(train(config, { loadPolicy: broken })), 'logits are not finite')
  await train(config, { ...fake, overwrite: true })
  isDisposed = false
  const longer = makeConfig(output, model, { ...small, run: { steps: 3 } })
  assert.is(await messageOf(train(longer, { loadPolicy: broken, resume: true })), 'no state')
  assert.ok(isDisposed)
  assert.not(existsSync(path.join(output, 'run.lock')))
})

test('what a callback throws ends the run, and no finished step is lost', async () => {
  const boom = new Error('boom')
  const fail = () => {
    throw boom
  }
  const cases: [TrainOptions, step: number | undefined][] = [
    [{ onStart: fail }, undefined],
    [{ onStep: ({ step }) => step === 3 && fail() }, 3],
    [{ isStopping: fail }, 1],
    [{ onStart: async () => fail() }, undefined],
    [{ onStep: async ({ step }) => (step === 3 ? fail() : undefined) }, 3],
    [{ isStopping: async () => fail() }, 1],
  ]
  for (const [options, step] of cases) {
    const output = path.join(makeTempDir(), 'run')
    const config = makeConfig(output, model, { run: { steps: 6, saveEvery: 50 } })
    const error = await train(config, { ...fake, ...options }).catch(error => error)
    assert.is(error, boom)
    assert.is(readLatestCheckpoint(output)?.trainer.step, step)
    if (step) assert.is(readLines(output, 'metrics.jsonl').length, step)
    assert.not(existsSync(path.join(output, 'run.lock')))
  }
})

test('a signal stops between micro-batches, saves, and rejects with its reason; resumed, the bits are equal', async () => {
  const whole = path.join(makeTempDir(), 'run')
  const run = { steps: 6, saveEvery: 50 }
  for (const stepsPerBatch of [1, 2]) {
    const changes = { optimizer: { microBatchTokens: 30, stepsPerBatch }, run }
    await train(makeConfig(whole, model, changes), { ...fake, overwrite: true })
    // At the first micro-batch of a batch; then in the middle of one of which an optimizer step may be done.
    for (const [call, name] of [
      [1, 'accumulate'],
      [2 * stepsPerBatch, 'step'],
    ] as const) {
      const output = path.join(makeTempDir(), 'run')
      const stop = new AbortController()
      const reason = new Error('enough')
      let steps = 0
      let after = 0
      const loadPolicy = loadChanged(policy => ({
        accumulate: (...given) => {
          if (stop.signal.aborted) after++
          if (name === 'accumulate' && steps === 2 * stepsPerBatch) stop.abort(reason)
          return policy.accumulate(...given)
        },
        step: rate => {
          if (++steps === call + 1 && name === 'step') stop.abort(reason)
          return policy.step(rate)
        },
      }))
      const config = makeConfig(output, model, changes)
      const error = await train(config, { loadPolicy, signal: stop.signal }).catch(error => error)
      assert.is(error, reason)
      // A batch with an optimizer step done is finished.
      assert.is(after > 0, name === 'step' && stepsPerBatch === 2)
      assert.is(readLatestCheckpoint(output)!.trainer.step, name === 'step' ? 3 : 2)
      assert.is(await train(config, { ...fake, resume: true }), 6)
      assert.equal(fingerprint(output), fingerprint(whole))
    }
  }
})

test('a signal ends the wait for the sampler, for a verifier and for a hook', async () => {
  const dir = makeTempDir()
  const hang = 'setInterval(() => {}, 1000).unref(); globalThis.hangs?.(); return new Promise(() => {})'
  const verifier = path.join(dir, 'verifier.mjs')
  writeFileSync(verifier, `export default { checkAnswer() {}, verify() { ${hang} } }`)
  const hook = path.join(dir, 'hook.mjs')
  writeFileSync(hook, `export default () => { ${hang} }`)
  const forever = loadChanged(() => ({
    generate: (_prompts, _sampling, options) =>
      new Promise((_, reject) => {
        options!.signal!.addEventListener('abort', () => reject(options!.signal!.reason))
        queueMicrotask((globalThis as { hangs?: () => void }).hangs!)
      }),
  }))
  const cases: [object, Partial<TrainOptions>, number | undefined][] = [
    [{}, { loadPolicy: forever }, undefined],
    [{ task: { timeout: 1e6, onTimeout: 'error', verifier } }, {}, undefined],
    [{ observe: { hook, prometheus: '', tensorboard: false } }, {}, 1],
  ]
  for (const [changes, options, saved] of cases) {
    const output = path.join(makeTempDir(), 'run')
    const stop = new AbortController()
    Object.assign(globalThis, { hangs: () => stop.abort() })
    const config = { ...makeConfig(output, model, { run: { steps: 3 } }), ...changes }
    const error = await train(config, { ...fake, ...options, signal: stop.signal }).catch(error => error)
    assert.is(error, stop.signal.reason)
    assert.is(readLatestCheckpoint(output)?.trainer.step, saved)
  }
  Object.assign(globalThis, { hangs: undefined })
  // Aborted before it begins: nothing is made.
  const output = path.join(makeTempDir(), 'run')
  const error = await train(makeConfig(output, model), { ...fake, signal: AbortSignal.abort() }).catch(
    error => error,
  )
  assert.is(error.name, 'AbortError')
  assert.not(existsSync(output))
})

test('a verdict that takes too long: an error that names the problem, or reward 0', async () => {
  const verifier = path.join(makeTempDir(), 'verifier.mjs')
  writeFileSync(verifier, 'export default { checkAnswer() {}, verify: () => new Promise(() => {}) }')
  const run = (task: object) => {
    const config = makeConfig(path.join(makeTempDir(), 'run'), model, { run: { steps: 1 } })
    return train({ ...config, task: { ...config.task, verifier, ...task } }, fake)
  }
  // Something is still there that could settle it, for all that is known.
  const alive = setInterval(() => {}, 1000)
  assert.match(
    await messageOf(run({ timeout: 0.01 })),
    /^the verifier failed on problem "p\d", completion ".*": it has not answered within 0.01 seconds \(task.timeout\)$/,
  )
  assert.is(await run({ timeout: 0.01, onTimeout: 'zero' }), 1)
  clearInterval(alive)
})

test("a lock that is lost ends the run: nothing is written over another's files", async () => {
  const output = path.join(makeTempDir(), 'run')
  const lock = path.join(output, 'run.lock')
  const theirs = '{"pid":1,"host":"elsewhere"}'
  let before: unknown
  const config = makeConfig(output, model, { run: { steps: 9, saveEvery: 2 } })
  const onStep = ({ step }: StepMetrics) => {
    if (step !== 5) return
    before = fingerprint(output)
    writeFileSync(lock, theirs)
  }
  const error = await train(config, { ...fake, onStep }).catch(error => error)
  assert.is(error.code, 'ERR_RAPO_ABORTED')
  assert.match(error.message, `the lock ${lock} is lost: process 1 on elsewhere has taken it over`)
  assert.equal(fingerprint(output), before)
  assert.equal(readdirSync(path.join(output, 'checkpoints')).sort(), ['latest', 'step-000002', 'step-000004'])
  assert.is(readFileSync(lock, 'utf8'), theirs)
})

test('the lock is taken before the newest checkpoint is read', async () => {
  const { output } = await spy({ run: { steps: 1 } })
  writeFileSync(path.join(output, 'run.lock'), String(process.ppid))
  // As another run may just have left it.
  writeFileSync(path.join(output, 'checkpoints', 'latest'), 'damaged')
  const config = makeConfig(output, model)
  assert.match(await messageOf(train(config, { ...fake, resume: true })), 'is in use by process')
})

test("a checkpoint is the newest only when its step's lines are written", async () => {
  const output = path.join(makeTempDir(), 'run')
  const samples = path.join(output, 'samples.jsonl')
  const config = makeConfig(output, model, { run: { steps: 9, saveEvery: 2 } })
  const onStep = ({ step }: StepMetrics) => {
    if (step !== 3) return
    rmSync(samples)
    mkdirSync(samples)
  }
  assert.match(await messageOf(train(config, { ...fake, onStep })), `cannot write ${samples}`)
  assert.is(readLatestCheckpoint(output)!.trainer.step, 2)
})

test('a run goes on with what it began with, or not at all', async () => {
  const reference = makeFakeModel()
  const weights = path.join(reference, 'model.safetensors')
  writeFileSync(weights, Buffer.alloc(9e6, 1))
  const own = makeFakeModel()
  const output = path.join(makeTempDir(), 'run')
  const config = (steps: number, dtype = 'float32') => {
    const made = makeConfig(output, own, { run: { steps, saveEvery: 1 } })
    return { ...made, model: { ...made.model, reference, dtype: dtype as 'float32' } }
  }
  await train(config(1), fake)
  const resume = (steps: number, dtype?: string) => train(config(steps, dtype), { ...fake, resume: true })
  const before = fingerprint(output)
  assert.match(await messageOf(resume(2, 'bfloat16')), 'began with model.dtype float32, not bfloat16')
  writeFileSync(weights, Buffer.alloc(9e6, 2))
  assert.match(
    await messageOf(resume(2)),
    /^the run in .* began with other files of model.reference .*: files of the digest \w{16}, now files of the digest \w{16}; put those files back$/,
  )
  assert.equal(fingerprint(output), before)
  // Written anew, or copied to another place: the same files.
  writeFileSync(weights, Buffer.alloc(9e6, 1))
  utimesSync(weights, 1, 1)
  assert.is(await resume(2), 2)
  const config_ = path.join(own, 'generation_config.json')
  writeFileSync(config_, '{"eos_token_id":5}')
  assert.match(await messageOf(resume(3)), 'began with other files of model.dir')
  rmSync(config_)

  // As the hub's cache has them: the commit is named.
  const cached = path.join(makeTempDir(), 'snapshots')
  cpSync(reference, path.join(cached, 'aaa'), { recursive: true })
  cpSync(reference, path.join(cached, 'bbb'), { recursive: true })
  const at = (commit: string, steps: number) => {
    const made = config(steps)
    return {
      ...made,
      run: { ...made.run, output: `${output}-hub` },
      model: { ...made.model, reference: path.join(cached, commit) },
    }
  }
  await train(at('aaa', 1), fake)
  assert.is(await train(at('bbb', 2), { ...fake, resume: true }), 2, 'another commit with the same files')
  writeFileSync(path.join(cached, 'aaa', 'model.safetensors'), 'new')
  assert.match(
    await messageOf(train(at('aaa', 3), { ...fake, resume: true })),
    /commit bbb, now commit aaa; name that one, .*@bbb in its config.yaml/,
  )

  // An older version of rapo has recorded nothing: the run goes on, and records it.
  const trainerFile = path.join(readLatestCheckpoint(output)!.dir, 'rapo', 'trainer.json')
  const { origin, ...old } = JSON.parse(readFileSync(trainerFile, 'utf8'))
  writeFileSync(trainerFile, JSON.stringify(old))
  writeFileSync(weights, Buffer.alloc(9e6, 3))
  assert.is(await resume(3), 3)
  assert.not.equal(readLatestCheckpoint(output)!.trainer.origin!.reference, origin.reference)
})

test.run()
