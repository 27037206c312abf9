/** Several rewards of a run: where they come from, what they are worth, and where each is seen. */
import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { parseConfig } from '../../lib/config/load.js'
import { verifyFormat } from '../../lib/reward/format.js'
import { lengthReward, overlongPunishment } from '../../lib/reward/length.js'
import { checkAnswerOf, loadRewards, type RewardOptions } from '../../lib/reward/rewards.js'
import type { StepMetrics } from '../../lib/train/metrics.js'
import { formatPrometheus } from '../../lib/train/observe/prometheus.js'
import { train } from '../../lib/train/train.js'
import { loadFakePolicy, makeFakeModel, makeTempDir, recordBatches } from '../helpers/fake-policy.js'
import { makeConfig } from '../helpers/train-child.js'

const dir = makeTempDir()
const module_ = (name: string, text: string) => {
  const file = path.join(dir, name)
  writeFileSync(file, text)
  return file
}
const context = { id: 'p', prompt: '', columns: {} }
const namesOf = async (options: RewardOptions) =>
  (await loadRewards(options)).map(({ name, weight }) => [name, weight])
const messageOf = (work: Promise<unknown>) =>
  work.then(
    () => '',
    error => (error as Error).message,
  )

const style = module_(
  'style.mjs',
  `export const polite = completion => (completion.includes('please') ? 1 : 0)
  export const brief = { checkAnswer: answer => (answer === 'long' ? 'is long' : undefined), verify: () => -1 }
  export const limit = 7`,
)
const one = module_('one.mjs', `export const helper = () => 1\nexport default () => 0.5`)

test('the format: tags in their order around something, or a box', () => {
  const reasons = (texts: readonly string[], format: 'think-answer' | 'think' | 'boxed') =>
    texts.map(text => {
      const { reward, reason } = verifyFormat(text, format)
      assert.is(reward, reason === 'in the format' ? 1 : 0, text)
      return reason
    })
  const fine = 'in the format'
  const wanted = 'not <think> </think> <answer> </answer>'
  assert.equal(
    reasons(
      [
        '<think>a\nb</think>\n<answer>5</answer>\n',
        ' a</think><answer>5</answer>',
        'so <think>a</think><answer>5</answer>',
        '<think> </think><answer>5</answer>',
        '<think>a</think> so <answer>5</answer>',
        '<think>a</think><answer></answer>',
        '<think>a</think><answer>5</answer> so',
        '<think>a</think>5',
        '<answer>5</answer><think>a</think>',
        '<think>a<think>b</think><answer>5</answer>',
        '',
      ],
      'think-answer',
    ),
    [
      ...[fine, fine, 'text before <think>', 'nothing is thought', 'text between </think> and <answer>'],
      ...['the answer is empty', 'text behind </answer>', `the tags are <think> </think>, ${wanted}`],
      `the tags are <answer> </answer> <think> </think>, ${wanted}`,
      `the tags are <think> <think> </think> <answer> </answer>, ${wanted}`,
      `the tags are missing, ${wanted}`,
    ],
  )
  assert.equal(reasons(['<think>a</think> 5', 'a</think>5', '<think>a</think> \n'], 'think'), [
    ...[fine, fine, 'nothing follows </think>'],
  ])
  assert.match(reasons(['<think>a</think><answer>5</answer>'], 'think')[0]!, 'not <think> </think>')
  assert.equal(reasons(['so \\boxed{5}', '5', '\\boxed{}'], 'boxed'), [
    fine,
    'no box with something in it',
    'no box with something in it',
  ])
})

test('the length, and the soft punishment of DAPO', () => {
  const at = (tokens: number) => ({ ...context, tokens, maxNewTokens: 100 })
  assert.equal(
    [1, 50, 100].map(tokens => lengthReward(at(tokens)).reward),
    [0.99, 0.5, 0],
  )
  // Equation 13 with L_max 100 and L_cache 20.
  assert.equal(
    [1, 80, 81, 90, 100].map(tokens => overlongPunishment(at(tokens), 20).reward),
    [0, 0, -0.05, -0.5, -1],
  )
  assert.throws(() => lengthReward(context), /a completion's length is known where it was sampled/)
})

test('parts: the verifier first, modules with one or several exports, their weights', async () => {
  assert.equal(await namesOf({ verifier: 'math' }), [['math', 1]])
  assert.equal(
    await namesOf({
      verifier: 'math',
      rewardFuncs: ['format', style, one, 'length', 'exact'],
      rewardWeights: [1, 0.2, 0.3, 0.4, 0.5, 0, -1],
      overlongBufferLen: 4,
      overlongPenaltyFactor: 2,
    }),
    [
      ['math', 1],
      ['format', 0.2],
      // A module's exports come in the order of their names.
      ['brief', 0.3],
      ['polite', 0.4],
      ['one', 0.5],
      ['length', 0],
      ['exact', -1],
      ['overlong', 2],
    ],
  )
  assert.equal(await namesOf({ verifier: `${style}#polite`, rewardFuncs: [`${style}#brief`] }), [
    ...[
      ['polite', 1],
      ['brief', 1],
    ],
  ])
  const parts = await loadRewards({
    verifier: one,
    rewardFuncs: [`${style}#brief`, 'format'],
    format: 'boxed',
  })
  assert.is(checkAnswerOf(parts).checkAnswer('long'), 'is long')
  assert.is(checkAnswerOf(parts).checkAnswer('short'), undefined)
  assert.equal(parts[2]!.verifier.verify('\\boxed{1}', '', context), { reward: 1, reason: 'in the format' })
})

test('TypeScript that only jiti loads: the same parts, also of a module whose export is named verify', () => {
  const file = module_(
    'typed.ts',
    `enum Score { none }
     export const verify = (completion: string) => Score.none
     export const other = (completion: string) => 1`,
  )
  const loader = new URL('../../lib/reward/load.ts', import.meta.url).href
  const jiti = new URL('../../node_modules/jiti/lib/jiti.mjs', import.meta.url).href
  // Node.js alone, where lib/ itself is loaded by jiti.
  const script = `import { createJiti } from ${JSON.stringify(jiti)}
    const { loadExports } = await createJiti(import.meta.url).import(${JSON.stringify(loader)})
    console.log(JSON.stringify([...(await loadExports('f', ${JSON.stringify(file)})).keys()]))`
  const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
    encoding: 'utf8',
    env: { ...process.env, NODE_OPTIONS: '' },
  })
  assert.is(stdout.trim(), '["other","verify"]', stderr)
})

test('parts that are not there, named twice, or weighed wrongly', async () => {
  const load = (options: RewardOptions) => messageOf(loadRewards(options))
  assert.match(await load({ verifier: 'math', rewardFuncs: ['formt'] }), 'task.rewardFuncs has "formt"')
  assert.match(await load({ verifier: 'math', rewardFuncs: ['formt'] }), 'did you mean "format"?')
  assert.match(
    await load({ verifier: 'math', rewardFuncs: ['./none.js'] }),
    'task.rewardFuncs: there is no file',
  )
  assert.match(
    await load({ verifier: 'math', rewardFuncs: ['math'] }),
    'task.rewardFuncs has a second reward named math, among math, math',
  )
  assert.match(
    await load({ verifier: 'math', rewardFuncs: [style], rewardWeights: [1, 2] }),
    'task.rewardWeights has 2 numbers for 3 rewards: math, brief, polite',
  )
  const none = `${style}#rude`
  assert.match(await load({ verifier: 'math', rewardFuncs: [none] }), 'its export rude must be a function')
  assert.match(await load({ verifier: 'math', rewardFuncs: [none] }), 'it exports brief, polite, as in')
  assert.match(await load({ verifier: style }), 'its default export must be a function')
  assert.match(await load({ verifier: style }), `style.mjs#brief`)
})

test('the fields: lists, or texts with commas', () => {
  const base = { model: { dir: 'm' }, data: { train: 't' } }
  const task = (fields: object) => parseConfig({ ...base, task: { verifier: 'math', ...fields } }).task
  assert.equal(task({ rewardFuncs: 'format, ./a.js', rewardWeights: '1, .5,-2' }).rewardFuncs, [
    ...['format', './a.js'],
  ])
  assert.equal(task({ rewardWeights: '1, .5,-2' }).rewardWeights, [1, 0.5, -2])
  assert.equal(task({ rewardWeights: 2 }).rewardWeights, [2])
  const fault = (fields: object, sampling = {}) => {
    try {
      parseConfig({ ...base, task: { verifier: 'math', ...fields }, sampling })
    } catch (error) {
      return (error as Error).message
    }
    return ''
  }
  const range = 'it must be a list of numbers, or one text with commas'
  assert.is(fault({ rewardWeights: '1,x' }), `task.rewardWeights is "1,x"; ${range}`)
  assert.is(fault({ rewardWeights: [1, 'x'] }), `task.rewardWeights is [1,"x"]; ${range}`)
  assert.match(fault({ rewardFuncs: [1] }), 'task.rewardFuncs is [1]; it must be a list of texts')
  assert.match(fault({ format: 'boxed' }), 'task.format is boxed; it needs format among task.rewardFuncs')
  assert.match(
    fault({ overlongBufferLen: 9 }, { maxNewTokens: 8 }),
    'task.overlongBufferLen is 9; it must be ≤ sampling.maxNewTokens, 8',
  )
  assert.match(
    fault({ overlongPenaltyFactor: 2 }),
    'task.overlongPenaltyFactor is 2; it needs task.overlongBufferLen',
  )
})

/** Writes 7 (id 10) and the end (id 1) often, and nothing that a decoded text does not show. */
const hidden = { 0: -1e9, 2: -1e9 }
const model = makeFakeModel({ ...hidden, 1: Math.log(5), 10: Math.log(5) })

/** A run of some steps, with what the policy was told to accumulate. */
async function run(changes: Parameters<typeof makeConfig>[2]) {
  const output = path.join(makeTempDir(), 'run')
  const { batches, loadPolicy } = recordBatches()
  const steps: StepMetrics[] = []
  const config = makeConfig(output, model, {
    ...changes,
    run: { steps: 2, samplesPerStep: 32, ...changes!.run },
  })
  await train(config, { loadPolicy, onStep: metrics => void steps.push(metrics) })
  const lines = readFileSync(path.join(output, 'samples.jsonl'), 'utf8').trim().split('\n')
  return { steps, batches, samples: lines.map(line => JSON.parse(line)) }
}

test('a run with several rewards: the sum is trained on, each is in the metrics and the samples', async () => {
  const seven = module_('seven.mjs', `export default completion => (completion.includes('7') ? 1 : 0)`)
  const { steps, samples } = await run({
    task: { rewardFuncs: [seven, 'length'], rewardWeights: [1, 0.5, -2], overlongBufferLen: 2 },
  })
  for (const { step, rewards, rewardMean } of steps) {
    const own = samples.filter(sample => sample.step === step)
    assert.is(own.length, 32)
    const mean = (read: (sample: (typeof samples)[number]) => number) =>
      own.reduce((sum, sample) => sum + read(sample), 0) / 32
    assert.equal(Object.keys(rewards!), ['countdown', 'seven', 'length', 'overlong'])
    for (const [i, [name, { mean: got, std }]] of Object.entries(rewards!).entries()) {
      const expected = mean(sample => sample.rewards[i].reward)
      assert.ok(Math.abs(got - expected) < 1e-12, name)
      const variance = mean(sample => (sample.rewards[i].reward - expected) ** 2)
      assert.ok(Math.abs(std - Math.sqrt(variance)) < 1e-12, name)
    }
    const total = mean(sample => sample.reward)
    assert.ok(Math.abs(rewardMean - total) < 1e-12)
    for (const { completion, reward, rewards, correct, finishReason } of own) {
      const tokens = completion.length + (finishReason === 'stop' ? 1 : 0)
      const values = rewards.map((part: { reward: number }) => part.reward)
      assert.is(correct, values[0] === 1)
      if (completion === '7') assert.ok(correct)
      assert.is(values[1], completion.includes('7') ? 1 : 0)
      assert.is(values[2], 1 - tokens / 4)
      assert.is(values[3], tokens <= 2 ? 0 : (2 - tokens) / 2)
      assert.ok(Math.abs(reward - (values[0] + 0.5 * values[1] - 2 * values[2] + values[3])) < 1e-12)
    }
  }
  const text = formatPrometheus(steps[0]!, { run: 'r' })
  assert.match(text, /^rapo_rewards_mean\{run="r",reward="seven"\} 0\.\d+$/m)
  assert.match(text, /^rapo_rewards_std\{run="r",reward="overlong"\} 0\.\d+$/m)
  assert.match(text, /^rapo_seconds\{run="r",phase="train"\} /m)
})

test('summed before or after normalisation: other advantages from the same rewards', async () => {
  const advantages = async (multiObjectiveAggregation: string) => {
    const { batches } = await run({
      task: { rewardFuncs: ['length'], rewardWeights: [1, 0.1] },
      objective: { multiObjectiveAggregation },
      run: { steps: 1 },
    })
    return [...new Set(batches.flatMap(batch => [...batch.advantages]))].map(x => x.toFixed(4))
  }
  assert.not.equal(await advantages('sum-then-normalize'), await advantages('normalize-then-sum'))
})

test('truncated completions are left out of the loss, and only then', async () => {
  const trained = async (maskTruncatedCompletions: boolean) => {
    const { batches, samples, steps } = await run({
      objective: { maskTruncatedCompletions },
      run: { steps: 1 },
    })
    const whole = samples.filter(({ finishReason }) => finishReason === 'stop')
    assert.ok(whole.length > 0 && whole.length < samples.length)
    const tokens = batches.reduce((sum, { tokenIds }) => sum + tokenIds.length, 0)
    assert.is(steps[0]!.tokens, tokens)
    const stops = batches.reduce((sum, { tokenIds }) => sum + [...tokenIds].filter(id => id === 1).length, 0)
    assert.is(stops, whole.length)
    // Each whole completion has the weight that it has beside the others: sequence-mean counts all 32.
    for (const { tokenIds, tokenWeights } of batches) {
      const sum = tokenWeights.reduce((sum, weight) => sum + weight, 0)
      const count = maskTruncatedCompletions ? [...tokenIds].filter(id => id === 1).length : 32
      assert.ok(Math.abs(sum - count / 32) < 1e-6, `${sum}`)
    }
    return { tokens, stopTokens: whole.reduce((sum, { completion }) => sum + completion.length + 1, 0) }
  }
  const [all, masked] = [await trained(false), await trained(true)]
  assert.is(masked.tokens, masked.stopTokens)
  assert.ok(all.tokens > masked.tokens)
  // Nothing is left to train on.
  const never = makeConfig(path.join(makeTempDir(), 'run'), makeFakeModel({ 1: -1e9 }), {
    objective: { maskTruncatedCompletions: true, topEntropyFraction: 0.5 },
    run: { steps: 2 },
  })
  const steps: StepMetrics[] = []
  await train(never, { loadPolicy: loadFakePolicy, onStep: metrics => void steps.push(metrics) })
  assert.equal(
    steps.map(({ tokens, truncatedFraction, loss, gradNorm }) => [tokens, truncatedFraction, loss, gradNorm]),
    [
      [0, 1, 0, 0],
      [0, 1, 0, 0],
    ],
  )
})

test('a reward function that fails is named', async () => {
  const broken = module_('broken.mjs', `export default () => { throw new Error('it broke') }`)
  const message = await messageOf(run({ task: { rewardFuncs: [broken] } }))
  assert.match(
    message,
    /^the reward broken failed on problem "p\d+", completion ".*": it broke \(\S+:\d+:\d+\)$/,
  )
})

test.run()
