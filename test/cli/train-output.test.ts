/** What rapo train prints beside its bar: the time left, sample completions, evaluations. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { trainingOutlook } from '../../lib/cli/outlook.js'
import { activityOf, describeEvaluation, formatSample } from '../../lib/cli/train-output.js'
import { parseConfig } from '../../lib/config/load.js'
import type { StepEvaluation } from '../../lib/train/evaluation.js'

const configOf = (run: object, every = 0) =>
  parseConfig({ model: { dir: 'm' }, task: { verifier: 'math' }, run, eval: { every } })
const secondsOf = (train: number, save = 0) => ({ rollout: 1, score: 0.5, train, save })

test('the time left has the steps, the checkpoints and the evaluations that are still to come', () => {
  const outlook = trainingOutlook(configOf({ steps: 10, saveEvery: 4 }, 3))
  outlook.start(0)
  // Nothing is known yet of saving and evaluating.
  assert.is(outlook.stepped({ step: 1, seconds: secondsOf(0.5) }), 9 * 2000)
  assert.is(outlook.stepped({ step: 2, seconds: secondsOf(2.5) }), 8 * 3000)
  outlook.evaluated({ seconds: 7 })
  // After 3: evaluations after 6, 9 and 10.
  assert.is(outlook.stepped({ step: 3, seconds: secondsOf(1.5) }), 7 * 3000 + 3 * 7000)
  // After 4: checkpoints at 8 and 10.
  assert.is(outlook.stepped({ step: 4, seconds: secondsOf(1.5, 20) }), 6 * 3000 + 3 * 7000 + 2 * 20_000)
  assert.is(outlook.done, 4)
  assert.is(outlook.stepped({ step: 10, seconds: secondsOf(1.5, 20) }), 0)
})

test('only the last ten steps tell how long a step takes', () => {
  const outlook = trainingOutlook(configOf({ steps: 100 }))
  outlook.start(50)
  for (let step = 51; step <= 60; step++) outlook.stepped({ step, seconds: secondsOf(98.5) })
  for (let step = 61; step <= 69; step++) outlook.stepped({ step, seconds: secondsOf(0.5) })
  assert.is(outlook.stepped({ step: 70, seconds: secondsOf(0.5) }), 30 * 2000)
})

test('the bar names saving and evaluating, and not the phases that are the step itself', () => {
  assert.equal(
    [
      activityOf('save'),
      activityOf('eval'),
      activityOf('eval', 3, 24),
      activityOf('rollout'),
      activityOf('train'),
    ],
    ['saving', 'evaluating', 'evaluating 3/24', undefined, undefined],
  )
})

test('an evaluation is a line', () => {
  const all = { problems: 1, passAtK: [0.25, 0.5], low: [0, 0], high: [1, 1] }
  const evaluation = {
    step: 50,
    k: [1, 2],
    samplesPerProblem: 4,
    groups: { all },
  } as unknown as StepEvaluation
  assert.is(
    describeEvaluation(evaluation),
    'step 50: pass@1 0.250, pass@2 0.500 of 1 problem, 4 completions each',
  )
  const majority = { majAtK: [0.25, 0.125], low: [0, 0], high: [1, 1] }
  const voted = { ...evaluation, step: 0, groups: { all: { ...all, majority } } } as StepEvaluation
  assert.is(
    describeEvaluation(voted),
    'before training: pass@1 0.250, pass@2 0.500, maj@2 0.125 of 1 problem, 4 completions each',
  )
})

test('a sample shows the prompt as sent, the completion and its reward; long texts lose their middle', () => {
  const sample = {
    ...{ step: 3, problemId: 'p1', prompt: 'How many?', renderedPrompt: '<|user|>How many?\n<|assistant|>' },
    ...{ completion: 'I think\n42', reward: 1 / 3, reason: 'close', finishReason: 'length' },
  }
  assert.is(
    formatSample(sample),
    `── step 3, problem p1, reward 0.333: close, cut off
prompt      <|user|>How many?
            <|assistant|>
completion  I think
            42`,
  )
  const long = {
    ...sample,
    renderedPrompt: `${'a'.repeat(400)}!`,
    completion: `${'b'.repeat(500)}${'c'.repeat(500)}`,
  }
  const [, prompt, completion] = formatSample(long).split('\n')
  assert.is(prompt, `prompt      …${'a'.repeat(299)}!`)
  assert.is(completion, `completion  ${'b'.repeat(400)} … ${'c'.repeat(400)}`)
})

test.run()
