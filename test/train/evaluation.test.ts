/** Evaluation during training: the same numbers as rapo eval, the same bits after a kill, and the best checkpoint kept. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import type { Config } from '../../lib/config/config.js'
import { evaluate } from '../../lib/eval/evaluate.js'
import { readBest, readLatestCheckpoint } from '../../lib/train/checkpoint.js'
import { isBest, type StepEvaluation, truncateEvaluations } from '../../lib/train/evaluation.js'
import { type TrainOptions, train } from '../../lib/train/train.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'
import { fingerprint, readLines } from '../helpers/run-files.js'
import { makeConfig } from '../helpers/train-child.js'

const model = makeFakeModel({ 1: Math.log(5), 10: Math.log(5) })
const problems = path.join(makeTempDir(), 'eval.jsonl')
const row = (i: number) => ({ id: `e${i}`, prompt: `7=${i}:`, answer: { numbers: [7], target: 7 } })
writeFileSync(problems, Array.from({ length: 6 }, (_, i) => `${JSON.stringify(row(i))}\n`).join(''))

type Changes = Partial<Record<keyof Config, object>>
const changesOf = ({ eval: evaluation, ...changes }: Changes = {}): Changes => ({
  ...changes,
  data: { eval: problems },
  run: { steps: 10, saveEvery: 4, ...changes.run },
  eval: { every: 3, samplesInTraining: 8, bootstrap: 100, ...evaluation },
})
const newRun = () => path.join(makeTempDir(), 'run')
const evals = (run: string) => readLines(run, 'evals.jsonl') as unknown as StepEvaluation[]
const stepsOf = (lines: readonly { step?: unknown }[]) => lines.map(({ step }) => step)

async function run(changes: Changes = {}, options: TrainOptions = {}, output = newRun()) {
  await train(makeConfig(output, model, changesOf(changes)), { loadPolicy: loadFakePolicy, ...options })
  return output
}

/** All that must be the same bits, evaluations included. */
const outcome = (output: string) => ({
  ...fingerprint(output),
  evals: evals(output),
  samples: readLines(output, 'evals-samples.jsonl'),
  best: readBest(output),
})

test('after every eval.every steps and after the last: the numbers of rapo eval on that checkpoint', async () => {
  const told: StepEvaluation[] = []
  const order: string[] = []
  const output = await run(
    { run: { saveEvery: 3, keepCheckpoints: 9 } },
    {
      onEvaluation: evaluation => {
        told.push(evaluation)
        order.push(`eval ${evaluation.step}`)
      },
      onStep: ({ step }) => void order.push(`step ${step}`),
    },
  )
  assert.equal(stepsOf(evals(output)), [3, 6, 9, 10])
  assert.equal(
    JSON.parse(JSON.stringify(told)).map(({ seconds: _, ...rest }: StepEvaluation) => rest),
    evals(output),
  )
  assert.equal(order.slice(2, 5), ['eval 3', 'step 3', 'step 4'])
  for (const { step, ...inTraining } of evals(output)) {
    const dir = path.join(output, 'checkpoints', `step-${String(step).padStart(6, '0')}`)
    const config = makeConfig(output, model, changesOf({ eval: { samples: 8 } }))
    const apart = await evaluate(config, {
      ...{ dir, model: 'm', name: 'n', output: makeTempDir(), loadPolicy: loadFakePolicy },
    })
    const { seconds: _, model: __, name: ___, ...expected } = apart
    assert.equal(inTraining, JSON.parse(JSON.stringify(expected)), `step ${step}`)
  }
  // The model learns the task.
  assert.ok(evals(output).at(-1)!.groups.all!.passAtK[0]! > evals(output)[0]!.groups.all!.passAtK[0]!)
  const samples = readLines(output, 'evals-samples.jsonl')
  assert.is(samples.length, 4 * 6)
  assert.equal([samples[0]!.step, samples[0]!.problemId, samples[0]!.renderedPrompt], [3, 'e0', '7=0:'])
})

test('evaluations do not change what is trained', async () => {
  const [with_, without] = [await run(), await run({ eval: { every: 0 } })]
  assert.equal(fingerprint(with_).weights, fingerprint(without).weights)
  assert.equal(fingerprint(with_).metrics, fingerprint(without).metrics)
  assert.not(existsSync(path.join(without, 'evals.jsonl')))
})

test('eval.onStart evaluates the model before training; eval.problemsInTraining takes the first problems', async () => {
  const output = await run({ eval: { every: 5, onStart: true, problemsInTraining: 2 } })
  assert.equal(stepsOf(evals(output)), [0, 5, 10])
  assert.equal(
    evals(output)[0]!.perProblem.map(({ id }) => id),
    ['e0', 'e1'],
  )
})

test('killed at any moment and resumed: equal bits, each evaluation once', async () => {
  const changes = changesOf({ run: { steps: 10, keepBest: true }, eval: { onStart: true } })
  const whole = await run({ run: { keepBest: true }, eval: { onStart: true } })
  const killed = newRun()
  const deaths = [
    // Calls of generate: the start, steps 1 to 3, the evaluation of step 3.
    ['generate', 5],
    ['save', 2],
    ['generate', 2],
    ['onEvaluation', 1],
    ['save', 1],
    ['onStep', 2],
    [],
  ]
  for (const death of deaths) {
    const args = ['--import', 'tsx', 'test/helpers/train-child.ts', 'run', killed, model]
    args.push(...(death.length > 0 ? death.map(String) : ['nowhere', '0']), JSON.stringify(changes))
    const [code, signal] = await once(spawn(process.execPath, args, { stdio: 'inherit' }), 'exit')
    assert.ok(signal === 'SIGKILL' || code === 0, `${death}: ${code}`)
  }
  assert.equal(outcome(killed), outcome(whole))
  assert.equal(stepsOf(evals(whole)), [0, 3, 6, 9, 10])
})

test('asked to stop, it leaves the evaluation to the resumed run, which begins with it', async () => {
  const whole = await run()
  let steps = 0
  const output = await run({}, { isStopping: () => ++steps === 3 })
  assert.is(readLatestCheckpoint(output)!.trainer.step, 3)
  assert.not(existsSync(path.join(output, 'evals.jsonl')))
  const order: string[] = []
  await run(
    {},
    {
      resume: true,
      onEvaluation: ({ step }) => void order.push(`eval ${step}`),
      onStep: ({ step }) => void order.push(`step ${step}`),
    },
    output,
  )
  assert.equal(order.slice(0, 2), ['eval 3', 'step 4'])
  assert.equal(outcome(output), outcome(whole))
})

test('an abort within an evaluation saves the step', async () => {
  const abort = new AbortController()
  const reason = new Error('enough')
  const output = newRun()
  const onPhase = (phase: string) => phase === 'eval' && abort.abort(reason)
  await run({}, { signal: abort.signal, onPhase }, output).then(assert.unreachable as never, error => {
    assert.is(error, reason)
  })
  assert.is(readLatestCheckpoint(output)!.trainer.step, 3)
  await run({}, { resume: true }, output)
  assert.equal(stepsOf(evals(output)), [3, 6, 9, 10])
})

test('run.keepBest keeps the best checkpoint beside the newest, also where it is no step of saveEvery', async () => {
  // From step 6 on the model forgets: its best evaluation is that of step 5.
  const forgetful: TrainOptions['loadPolicy'] = async (dir, options) => {
    const policy = await loadFakePolicy(dir, options)
    let steps = 0
    return { ...policy, step: rate => policy.step(++steps > 5 ? -3 * rate : rate) }
  }
  const changes = { run: { steps: 20, saveEvery: 4, keepCheckpoints: 2, keepBest: true }, eval: { every: 5 } }
  const output = await run(changes, { loadPolicy: forgetful })
  const scores = evals(output).map(({ groups }) => groups.all!.passAtK[0]!)
  const best = scores.indexOf(Math.max(...scores))
  assert.is(best, 0, String(scores))
  assert.is(readBest(output), 5)
  const names = readdirSync(path.join(output, 'checkpoints')).sort()
  assert.equal(names, ['best', 'latest', 'step-000005', 'step-000016', 'step-000020'])
  assert.is(readFileSync(path.join(output, 'checkpoints', 'best'), 'utf8'), 'step-000005\n')
  const without = await run(
    { ...changes, run: { ...changes.run, keepBest: false } },
    { loadPolicy: forgetful },
  )
  assert.is(readBest(without), undefined)
})

test('killed between an evaluation and the naming of its checkpoint, the resumed run names the checkpoint', async () => {
  const changes = { run: { steps: 3, saveEvery: 3, keepBest: true } }
  const output = await run(changes)
  const whole = outcome(output)
  assert.is(whole.best, 3)
  rmSync(path.join(output, 'checkpoints', 'best'))
  await run(changes, { resume: true }, output)
  assert.equal(outcome(output), whole)
})

test('samples of an evaluation whose line is missing are dropped, since the evaluation is done again', () => {
  const dir = makeTempDir()
  const [file, samplesFile] = [path.join(dir, 'evals.jsonl'), path.join(dir, 'evals-samples.jsonl')]
  const line = (step: number) => `${JSON.stringify({ step, groups: { all: { passAtK: [step / 10] } } })}\n`
  const left = (evaluated: number[]) => {
    writeFileSync(file, evaluated.map(line).join(''))
    writeFileSync(samplesFile, [3, 6, 9].map(step => `{"step":${step}}\n`).join(''))
    const scores = truncateEvaluations({ file, samplesFile }, 6)
    return [[...scores], readFileSync(samplesFile, 'utf8').match(/\d/g)!.map(Number)]
  }
  // A kill behind the samples of step 6, before its line; and one after both.
  assert.equal(left([3]), [[[3, 0.3]], [3]])
  assert.equal(left([3, 6, 9]), [
    [
      [3, 0.3],
      [6, 0.6],
    ],
    [3, 6],
  ])
})

test('the earliest of equally good ones is the best; the model before training is none', () => {
  const scores = new Map([
    [0, 0.9],
    [3, 0.5],
    [6, 0.5],
    [9, 0.6],
  ])
  const evaluations = { scores } as Parameters<typeof isBest>[0]
  assert.is(isBest(evaluations, 0, undefined), false)
  assert.is(isBest(evaluations, 3, undefined), true)
  assert.is(isBest(evaluations, 6, 3), false)
  assert.is(isBest(evaluations, 9, 3), true)
})

test('what is missing or cannot be is said before anything is written', async () => {
  const refused = async (changes: Changes, data: object, message: RegExp) => {
    const output = newRun()
    try {
      const config = makeConfig(output, model, { ...changesOf(changes), data })
      await train(config, { loadPolicy: loadFakePolicy })
    } catch (error) {
      assert.match((error as Error).message, message)
      assert.not(existsSync(output))
      return
    }
    assert.unreachable()
  }
  await refused(
    {},
    {},
    /^data\.eval is missing: the problem file of the evaluations that eval\.every asks for/,
  )
  const broken = path.join(makeTempDir(), 'broken.jsonl')
  writeFileSync(broken, '{"prompt": "7=7:", "answer": {"numbers": [7]}}\n')
  await refused({}, { eval: broken }, /answer\.target must be a whole number/)
  await refused(
    { run: { keepBest: true }, eval: { every: 0 } },
    { eval: problems },
    /run\.keepBest is true; it needs eval\.every/,
  )
  await refused(
    { sampling: { temperature: 0 } },
    { eval: problems },
    /sampling\.temperature is 0, greedy, which is for measurements/,
  )
})

test.run()
