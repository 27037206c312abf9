import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { fields } from '../../lib/config/help.js'
import { loadConfig } from '../../lib/config/load.js'
import { promptStyles } from '../../lib/model/template.js'
import { environmentNames } from '../../lib/reward/environments.js'
import { verifierNames } from '../../lib/reward/load.js'
import { rewardFuncNames } from '../../lib/reward/rewards.js'
import { readStudy } from '../../lib/study/plan.js'
import { readBest, readLatestCheckpoint } from '../../lib/train/checkpoint.js'
import { dryRun } from '../../lib/train/dry-run.js'
import type { StepMetrics } from '../../lib/train/metrics.js'
import { train } from '../../lib/train/train.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'

const dir = fileURLToPath(new URL('../../configs', import.meta.url))
const files = readdirSync(dir).filter(name => name.endsWith('.yaml'))
const load = (name: string) => loadConfig(path.join(dir, name))

for (const name of files) {
  test(`${name} is valid`, () => {
    const config = load(name)
    const { verifier, environment } = config.task
    assert.ok(verifier ? verifierNames.includes(verifier) : environmentNames.includes(environment!))
    assert.ok(config.task.rewardFuncs.every(func => rewardFuncNames.includes(func)))
    assert.ok(config.data.train && config.data.eval)
  })
}

for (const name of readdirSync(path.join(dir, 'studies'))) {
  test(`studies/${name} is valid, the quick version too`, () => {
    const file = path.join(dir, 'studies', name)
    const [whole, quick] = [readStudy(file), readStudy(file, { quick: true })]
    assert.ok(whole.seeds.length >= 5 && whole.variants.length >= 2)
    assert.ok(quick.seeds.length >= 2 && quick.variants.length >= 2)
  })
}

test('a pair differs in its objective alone', () => {
  const pairs = files.filter(name => name.endsWith('-rapo.yaml'))
  assert.ok(pairs.length >= 6)
  for (const name of pairs) {
    const [{ objective: a, ...rapo }, { objective: b, ...grpo }] = [
      load(name),
      load(name.replace('-rapo', '-grpo')),
    ]
    assert.equal(rapo, grpo, name)
    assert.equal([a.preset, a.penalty.startsWith('forward')], ['rapo', true], name)
    assert.equal([b.preset, b.penalty.startsWith('reverse')], ['grpo', true], name)
  }
})

test("the paper's setting: SimpleRL's recipe, its prompt to the letter", () => {
  for (const name of files.filter(file => file.startsWith('simplerl-'))) {
    const { data, sampling, optimizer, objective, eval: evaluation } = load(name)
    assert.is(
      promptStyles[data.template as keyof typeof promptStyles]?.text,
      '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{prompt}\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n',
    )
    assert.equal([sampling.promptsPerStep, sampling.groupSize, sampling.temperature], [1024, 8, 1])
    assert.equal([optimizer.learningRate, optimizer.schedule, optimizer.maxGradNorm], [5e-7, 'constant', 1])
    assert.equal(
      [objective.klCoef, objective.entropyCoef, objective.clipLow, objective.clipHigh],
      [1e-4, 1e-3, 0.2, 0.2],
    )
    assert.is(objective.advantageScale, 'sample-std')
    assert.is(evaluation.samples, 2048)
  }
})

test('each feature of docs/rewards.md and environments.md has an example that runs, and shows it', async () => {
  const pages = ['rewards.md', 'environments.md', 'training.md', 'files.md', 'scale.md', 'lora.md']
  const text = pages.map(page => readFileSync(path.join(dir, '..', 'docs', page), 'utf8')).join('')
  const named = [...text.matchAll(/`configs\/([^`]+)`/g)].map(match => match[1]!)
  assert.equal(
    named.filter(name => !files.includes(name)),
    [],
  )
  const shown = {
    'countdown-rewards.yaml': ({ rewards }: StepMetrics) => 'length' in rewards! && 'overlong' in rewards,
    'countdown-dynamic-sampling.yaml': ({ generatedGroups }: StepMetrics) => generatedGroups! > 4,
    'countdown-moving-reference.yaml': () => true,
    'countdown-calculator.yaml': ({ turnsMean }: StepMetrics) => turnsMean! >= 1,
  }
  for (const [name, isShown] of Object.entries(shown)) {
    const output = path.join(makeTempDir(), 'run')
    const model = makeFakeModel({ 1: Math.log(5), 10: Math.log(5) })
    const config = loadConfig(path.join(dir, name), {
      ...{ 'model.dir': model, 'run.output': output, 'run.steps': 2 },
      ...{ 'sampling.promptsPerStep': 4, 'sampling.groupSize': 4, 'sampling.maxNewTokens': 8 },
      ...(name === 'countdown-calculator.yaml' && { 'task.maxTurnTokens': 4 }),
      ...(name === 'countdown-moving-reference.yaml' && { 'model.refModelSyncSteps': 2 }),
    })
    const steps: StepMetrics[] = []
    await train(config, { loadPolicy: loadFakePolicy, onStep: metrics => void steps.push(metrics) })
    assert.ok(steps.length === 2 && steps.every(isShown), name)
    const reference = readLatestCheckpoint(output)!.referenceDir
    assert.is(reference !== undefined, name === 'countdown-moving-reference.yaml', name)
  }
})

test('the example of docs/training.md runs: it evaluates, keeps the best, shows samples', async () => {
  const output = path.join(makeTempDir(), 'run')
  const config = loadConfig(path.join(dir, 'countdown-evaluation.yaml'), {
    ...{
      'model.dir': makeFakeModel({ 1: Math.log(5), 10: Math.log(5) }),
      'run.output': output,
      'run.steps': 3,
    },
    ...{ 'sampling.promptsPerStep': 4, 'sampling.groupSize': 4, 'eval.every': 2, 'run.showSamples': 2 },
  })
  const events: string[] = []
  await train(config, {
    loadPolicy: loadFakePolicy,
    onEvaluation: ({ step, groups }) => {
      events.push(`eval ${step}`)
      assert.ok(groups.all!.problems === 32 && groups.all!.majority)
    },
    onSamples: ([first]) => void events.push(`samples ${first!.step}`),
  })
  assert.equal(events, ['eval 0', 'samples 1', 'eval 2', 'eval 3', 'samples 3'])
  assert.ok(readBest(output))
})

test('the example of data options: a list, a glob, columns by name, every fourth problem', async () => {
  const name = 'countdown-data.yaml'
  const config = loadConfig(path.join(dir, name), {
    'model.dir': makeFakeModel({ 1: Math.log(5), 10: Math.log(5) }),
    'run.output': path.join(makeTempDir(), 'run'),
  })
  const { problem, rollouts } = await dryRun(config, { loadPolicy: loadFakePolicy })
  const file = path.join(dir, '..', 'data', 'countdown', 'train.jsonl')
  const lines = readFileSync(file, 'utf8').trim().split('\n')
  const mine = lines.filter((_, i) => i % 4 === 1).map(line => JSON.parse(line).id)
  assert.ok(mine.includes(problem.id), problem.id)
  assert.is(rollouts.length, 16)
})

test('the example of a chat template: its fields, and greedy evaluation', () => {
  const { data, eval: evaluation } = load('gsm8k-qwen3-0.6b-chat.yaml')
  assert.is(data.template, 'chat')
  assert.equal(data.chatTemplateArguments, { enable_thinking: false })
  assert.ok(data.systemPrompt)
  assert.equal([evaluation.temperature, evaluation.samples], [0, 1])
})

test('docs/coming-from.md names fields that there are', () => {
  const page = readFileSync(path.join(dir, '..', 'docs', 'coming-from.md'), 'utf8')
  const known = new Set(fields.map(field => field.path))
  const groups = new Set([...known].map(field => field.split('.')[0]!))
  let named = 0
  for (const row of page.split('\n').filter(line => line.startsWith('| '))) {
    const cell = row.split(/(?<!\\)\|/)[3]!
    for (const [, field] of cell.matchAll(/`([a-z]+\.[a-zA-Z0-9]+)/g)) {
      if (!groups.has(field!.split('.')[0]!)) continue
      assert.ok(known.has(field!), `${field} in ${row}`)
      named++
    }
  }
  assert.ok(named > 60, `${named}`)
})

test.run()
