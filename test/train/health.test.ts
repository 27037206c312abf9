/** Runs that learn nothing, by their metrics: what is told, when, and how often; and a run of the trainer that is told. */
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { HEALTH_STEPS, type Symptom, symptomsOf, type Vitals, watchHealth } from '../../lib/train/health.js'
import { train } from '../../lib/train/train.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'
import { makeConfig } from '../helpers/train-child.js'

const config = { maxNewTokens: 64, groupSize: 8 }
const fine = {
  rewardMean: 0.4,
  rewardStd: 0.49,
  zeroAdvantageFraction: 0.3,
  truncatedFraction: 0.1,
  entropy: 0.5,
}
/** `count` steps from `first` on. */
const steps = (count: number, values: Partial<Vitals> = {}, first = 1): Vitals[] =>
  Array.from({ length: count }, (_, i) => ({ ...fine, ...values, step: first + i }))
const told = (symptoms: readonly Symptom[]) =>
  symptoms.map(({ name, firstStep, lastStep }) => `${name} ${firstStep}-${lastStep}`)

const sick: Record<string, Partial<Vitals>> = {
  'cut-off': { truncatedFraction: 0.9375 },
  'equal-rewards': { rewardMean: 0, rewardStd: 0, zeroAdvantageFraction: 1 },
  'no-signal': { zeroAdvantageFraction: 1 },
  'no-entropy': { entropy: 0.002 },
}

test('each symptom has its name, its steps, and the fields that help', () => {
  assert.equal(symptomsOf(steps(50), config), [])
  const fields: Record<string, string[]> = {
    'cut-off': ['sampling.maxNewTokens, 64', 'data.template', '93 %'],
    'equal-rewards': ['the reward 0,', 'data.train', 'task.extract', 'data.template'],
    'no-signal': ['sampling.groupSize 8', 'sampling.filterGroups'],
    'no-entropy': ['objective.entropyCoef', 'optimizer.learningRate', '0.0020 nats'],
  }
  for (const [name, values] of Object.entries(sick)) {
    const found = symptomsOf([...steps(5), ...steps(12, values, 6), ...steps(5, {}, 18)], config)
    assert.equal(told(found), [`${name} 6-17`])
    for (const part of [...fields[name]!, 'Steps 6 to 17: ']) assert.match(found[0]!.text, part)
  }
  const [all] = symptomsOf(steps(10, { rewardMean: 1, rewardStd: 0, zeroAdvantageFraction: 1 }), config)
  assert.match(
    all!.text,
    'every completion got the reward 1, so that nothing is learnt. Either the problems are too easy',
  )
})

test('one step that is fine ends it; a value that is missing or null says nothing', () => {
  for (const values of Object.values(sick)) {
    const broken = [...steps(9, values), ...steps(1, {}, 10), ...steps(9, values, 11)]
    assert.equal(symptomsOf(broken, config), [])
  }
  assert.equal(
    symptomsOf(
      Array.from({ length: 12 }, (_, i) => ({ step: i + 1, entropy: null })),
      config,
    ),
    [],
  )
})

test('completions that are cut off explain rewards that are all 0', () => {
  const both = { ...sick['cut-off'], ...sick['equal-rewards'] }
  assert.equal(told(symptomsOf(steps(10, both), config)), ['cut-off 1-10'])
  // Not those before.
  const before = [...steps(10, sick['equal-rewards']), ...steps(10, both, 11)]
  assert.equal(told(symptomsOf(before, config)), ['equal-rewards 1-20', 'cut-off 11-20'])
})

test('a watch tells each once, and again when it comes back; a short run at its end', () => {
  const watch = watchHealth(config)
  const said: string[] = []
  const pass = (some: Vitals[]) => {
    for (const step of some) for (const name of told(watch.add(step))) said.push(`${step.step}: ${name}`)
  }
  pass([...steps(30, sick['no-signal']), ...steps(5, {}, 31), ...steps(15, sick['no-signal'], 36)])
  assert.equal(said, ['10: no-signal 1-10', '45: no-signal 36-45'])
  assert.equal(watch.end(), [])
  const short = watchHealth(config)
  for (const step of steps(HEALTH_STEPS - 1, sick['equal-rewards'])) assert.equal(short.add(step), [])
  assert.equal(told(short.end()), ['equal-rewards 1-9'])
  const shorter = watchHealth(config)
  for (const step of steps(2, sick['equal-rewards'])) assert.equal(shorter.add(step), [])
  assert.equal(shorter.end(), [])
})

test('a run of the trainer is told', async () => {
  // Never writes 7: every reward is 0.
  const model = makeFakeModel({ 1: 9 })
  const notices: string[] = []
  const run = { steps: 3, output: path.join(makeTempDir(), 'run') }
  await train(makeConfig(run.output, model, { run }), {
    loadPolicy: loadFakePolicy,
    onNotice: text => void notices.push(text),
  })
  // The entropy that the fake policy tells is always 0.
  assert.is(notices.length, 2)
  assert.match(notices[1]!, 'the entropy is 0.0 nats')
  assert.match(notices[0]!, /^Steps 1 to 3: every completion got the reward 0, .*task\.verifier/)
})

test.run()
