/** Runs with the section lora, on a real model of one layer: checkpoints, resuming, measuring, merging. */
import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { mergeAdapter } from '../../lib/cli/merge.js'
import { parseConfig } from '../../lib/config/load.js'
import { evaluate } from '../../lib/eval/evaluate.js'
import { loadPolicy } from '../../lib/model/engine.js'
import { locateModel } from '../../lib/model/locate.js'
import { readLatestCheckpoint } from '../../lib/train/checkpoint.js'
import { planDisk } from '../../lib/train/disk.js'
import { train } from '../../lib/train/train.js'
import { maxDifference, pack } from '../helpers/engine-util.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'
import { makeTinyModel } from '../helpers/tiny-model.js'
import { makeConfig } from '../helpers/train-child.js'

const model = await makeTinyModel()
const newRun = () => path.join(makeTempDir(), 'run')
const lora = { r: 4, loraAlpha: 8 }
const configOf = (output: string, changes: object = { lora }) =>
  makeConfig(output, model, {
    objective: { klCoef: 0.1, preset: 'rapo' },
    optimizer: { learningRate: 0.05 },
    run: { steps: 4, saveEvery: 1, keepCheckpoints: 9 },
    ...changes,
  })
const checkpoint = (output: string, step: number) => path.join(output, 'checkpoints', `step-00000${step}`)
const linesIn = (output: string, file: string) =>
  readFileSync(path.join(output, file), 'utf8')
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
const metricsIn = (output: string) => linesIn(output, 'metrics.jsonl')
const samplesIn = (output: string) => linesIn(output, 'samples.jsonl')
const weightsIn = (dir: string) => readFileSync(path.join(dir, 'adapter_model.safetensors'))

async function codeAndMessage(work: Promise<unknown>): Promise<string> {
  try {
    await work
  } catch (error) {
    assert.instance(error, RapoError)
    return `${(error as RapoError).code} ${(error as Error).message}`
  }
  return ''
}

const whole = newRun()
await train(configOf(whole))

test("a checkpoint holds the adapter alone, as PEFT's files", () => {
  const dir = checkpoint(whole, 4)
  const names = readdirSync(dir)
  assert.ok(names.includes('adapter_config.json') && names.includes('adapter_model.safetensors'))
  assert.not.ok(names.some(name => name === 'config.json' || name.startsWith('model')))
  const config = JSON.parse(readFileSync(path.join(dir, 'adapter_config.json'), 'utf8'))
  assert.is(config.base_model_name_or_path, model)
  assert.equal([config.peft_type, config.r, config.lora_alpha, config.lora_dropout], ['LORA', 4, 8, 0])
  assert.not.equal(weightsIn(dir), weightsIn(checkpoint(whole, 1)))
})

test('a run that is stopped and resumed gives the same bits', async () => {
  const output = newRun()
  let asked = 0
  await train(configOf(output), { isStopping: () => ++asked === 2 })
  assert.is(readLatestCheckpoint(output)!.trainer.step, 2)
  await train(configOf(output), { resume: true })
  for (const step of [2, 3, 4]) {
    assert.equal(weightsIn(checkpoint(output, step)), weightsIn(checkpoint(whole, step)))
    const state = (run: string) => readFileSync(path.join(checkpoint(run, step), 'rapo', 'state.safetensors'))
    assert.equal(state(output), state(whole))
  }
})

test('in bfloat16, with merged weights and moments that are rounded by the seed, too', async () => {
  const changes = {
    lora,
    model: { dir: model, dtype: 'bfloat16' },
    optimizer: { learningRate: 0.05, stateDtype: 'bfloat16' },
  }
  const [unbroken, output] = [newRun(), newRun()]
  await train(configOf(unbroken, changes))
  let asked = 0
  await train(configOf(output, changes), { isStopping: () => ++asked === 2 })
  await train(configOf(output, changes), { resume: true })
  const filesOf = (run: string) =>
    [4, 3, 2].flatMap(step => {
      const state = path.join(checkpoint(run, step), 'rapo', 'state.safetensors')
      return [weightsIn(checkpoint(run, step)), readFileSync(state)]
    })
  assert.equal(filesOf(output), filesOf(unbroken))
  assert.equal(samplesIn(output), samplesIn(unbroken))
  const half = { ...changes, optimizer: { learningRate: 0.05 } }
  assert.match(
    await codeAndMessage(train(configOf(unbroken, half), { resume: true })),
    /^ERR_RAPO_FORMAT .*state.safetensors: tensor "exp_avg\..*" is BF16 .*expected F32 .*optimizer.stateDtype/,
  )
})

test('a run begins with an adapter of lora.adapterPath, which is its reference', async () => {
  const start = checkpoint(whole, 2)
  const output = newRun()
  const objective = { preset: 'grpo', penalty: 'reverse-k3', klCoef: 0.1 }
  const changes = { objective, lora: { ...lora, adapterPath: start } }
  await train(configOf(output, { ...changes, run: { steps: 1 } }))
  const [first] = metricsIn(output)
  // To the roundings of double sums.
  assert.ok(Math.abs(first.kl) < 1e-12)
  // The same step with the model as the reference, as named: the adapter has moved the policy away from it.
  const other = newRun()
  await train(configOf(other, { ...changes, run: { steps: 1 }, model: { dir: model, reference: model } }))
  assert.ok(metricsIn(other)[0].kl > 1e-3)

  // Resumed, the run goes on from its checkpoint, with the same reference.
  const unbroken = newRun()
  await train(configOf(unbroken, changes))
  const resumed = newRun()
  let asked = 0
  await train(configOf(resumed, changes), { isStopping: () => ++asked === 2 })
  await train(configOf(resumed, changes), { resume: true })
  assert.equal(weightsIn(checkpoint(resumed, 4)), weightsIn(checkpoint(unbroken, 4)))
  assert.equal(
    metricsIn(resumed).map(({ kl }) => kl),
    metricsIn(unbroken).map(({ kl }) => kl),
  )
  for (const [adapterPath, message] of [
    [
      undefined,
      /began with an adapter of the digest .*; now lora.adapterPath is none; go on with the former/,
    ],
    [
      checkpoint(whole, 3),
      /began with an adapter of the digest .*; now lora.adapterPath is .*, whose digest is/,
    ],
  ] as const) {
    const config = configOf(resumed, { objective, lora: { ...lora, ...(adapterPath && { adapterPath }) } })
    assert.match(await codeAndMessage(train(config, { resume: true })), message)
  }
})

test('an adapter of another shape or of another model is refused before anything is written', async () => {
  const output = newRun()
  const start = (changes: object, more: object = {}) =>
    codeAndMessage(train(configOf(output, { lora: { ...lora, ...changes }, ...more })))
  const adapterPath = checkpoint(whole, 2)
  for (const changes of [{ r: 8 }, { loraAlpha: 16 }, { targetModules: ['q_proj'] }, { useRslora: true }]) {
    assert.match(
      await start({ adapterPath, ...changes }),
      /^ERR_RAPO_CONFIG lora.adapterPath is .*, an adapter with lora.r 4, loraAlpha 8, .*; the configuration says .*: write the former/,
    )
  }
  assert.match(
    await start({ adapterPath: makeTempDir() }),
    /^ERR_RAPO_FORMAT .* holds no adapter of PEFT: there is no adapter_config.json/,
  )
  // Of the same shapes, with other weights.
  const other = await makeTinyModel(2)
  assert.match(
    await start({ adapterPath }, { model: { dir: other } }),
    /^ERR_RAPO_CONFIG lora.adapterPath is .*, an adapter for .* \(base_model_name_or_path .*, and model.dir is .*, which is another model/,
  )
  const named = (name: string) => {
    const dir = makeTempDir()
    cpSync(adapterPath, dir, { recursive: true })
    const file = path.join(dir, 'adapter_config.json')
    const config = { ...JSON.parse(readFileSync(file, 'utf8')), base_model_name_or_path: name }
    writeFileSync(file, JSON.stringify(config))
    return dir
  }
  // The same model elsewhere is the same model; where it is not here, a notice says so.
  const copy = makeTempDir()
  cpSync(model, copy, { recursive: true })
  assert.is(await start({ adapterPath: named(copy) }, { run: { steps: 1 } }), '')
  const notices: string[] = []
  await train(
    configOf(newRun(), { lora: { ...lora, adapterPath: named('/nowhere/model') }, run: { steps: 1 } }),
    {
      onNotice: text => notices.push(text),
    },
  )
  assert.ok(notices.some(text => text.includes('made for /nowhere/model, which is not on this machine')))
})

test('a run goes on with the adapter that it began with', async () => {
  const resume = (output: string, changes: object) =>
    codeAndMessage(train(configOf(output, changes), { resume: true }))
  assert.match(
    await resume(whole, { lora: { r: 8, loraAlpha: 8 } }),
    /^ERR_RAPO_CONFIG the run in .* began with lora.r 4, loraAlpha 8, .* not with lora.r 8, loraAlpha 8/,
  )
  assert.match(await resume(whole, {}), /began with lora.r 4, .*, not with lora.r 0: go on with the former/)
  const full = newRun()
  await train(configOf(full, { run: { steps: 1 } }))
  assert.match(await resume(full, { lora }), /began with lora.r 0, not with lora.r 4/)
})

test('a policy of the caller’s own that saves no adapters is refused before anything is written', async () => {
  const output = newRun()
  const config = makeConfig(output, makeFakeModel(), { lora })
  const message = await codeAndMessage(train(config, { loadPolicy: loadFakePolicy }))
  assert.match(message, /^ERR_RAPO_CONFIG lora.r is 4; it must be 0 for a policy without saveAdapter/)
  assert.not.ok(existsSync(path.join(output, 'config.yaml')))
})

test('its memory and its disk are those of the adapter', () => {
  const parts = { weights: 1e6, gradients: 400, reference: 0 }
  const disk = planDisk(configOf(newRun()), parts)
  assert.equal([disk.weights, disk.state], [400, 1200])
  const halved = configOf(newRun(), { lora, optimizer: { stateDtype: 'bfloat16' } })
  assert.is(planDisk(halved, parts).state, 800)
})

test('a checkpoint is measured with its model, and merged into one that gives the same log-probs', async () => {
  const dir = checkpoint(whole, 4)
  assert.equal(await locateModel(dir), { modelDir: model, adapterDir: dir })
  const config = configOf(newRun())
  const measured = await evaluate(
    { ...config, data: { ...config.data, eval: config.data.train }, eval: { ...config.eval, samples: 2 } },
    { dir, model: whole, name: 'adapter', output: makeTempDir() },
  )
  assert.is(measured.perProblem.length, 10)

  const output = path.join(makeTempDir(), 'merged')
  await mergeAdapter({ adapter: dir, output })
  assert.ok(existsSync(path.join(output, 'tokenizer.json')))
  const sequences = pack([[5, 6, 7, 8, 9, 10]])
  const rows = { rowPositions: Int32Array.of(0, 1, 2, 3), tokenIds: Int32Array.of(6, 7, 8, 9) }
  const logprobs: Float32Array[] = []
  for (const [from, options] of [
    [model, { adapterDir: dir }],
    [output, {}],
    [model, {}],
  ] as const) {
    const policy = await loadPolicy(from, { trainable: false, ...options })
    logprobs.push((await policy.logprobs(sequences, rows, 1)).logprobs)
    await policy.dispose()
  }
  // Roundings of float32 numbers of size 10; four steps at this rate move log-probs by tenths.
  assert.ok(maxDifference(logprobs[0]!, logprobs[1]!) < 1e-5)
  assert.ok(maxDifference(logprobs[0]!, logprobs[2]!) > 1e-2)

  assert.match(
    await codeAndMessage(mergeAdapter({ adapter: dir, output })),
    /^ERR_RAPO_CONFIG .*merged is not empty: choose another --output/,
  )
  assert.match(
    await codeAndMessage(mergeAdapter({ adapter: model, output: newRun() })),
    /holds no adapter of PEFT: there is nothing to merge/,
  )
})

test('an adapter whose model is unknown or gone says so', async () => {
  const with_ = (name: string | null) => {
    const dir = makeTempDir()
    const config = JSON.parse(readFileSync(path.join(checkpoint(whole, 4), 'adapter_config.json'), 'utf8'))
    writeFileSync(
      path.join(dir, 'adapter_config.json'),
      JSON.stringify({ ...config, base_model_name_or_path: name }),
    )
    return dir
  }
  assert.match(
    await codeAndMessage(locateModel(with_(null))),
    /^ERR_RAPO_FORMAT .*base_model_name_or_path is missing: it names the model/,
  )
  assert.match(
    await codeAndMessage(locateModel(with_('/nowhere/model'))),
    /base_model_name_or_path is "\/nowhere\/model"; there is no such directory/,
  )
})

test('the configuration: names, ranges, and what goes together', () => {
  const of = (values: object) =>
    parseConfig({ model: { dir: 'm' }, task: { verifier: 'countdown' }, ...values }).lora
  assert.equal(of({}), { r: 0, loraAlpha: 8, targetModules: ['all-linear'], useRslora: false, merge: true })
  assert.equal(of({ lora: { r: 2, targetModules: 'q_proj, v_proj' } }).targetModules, ['q_proj', 'v_proj'])
  const messageOf = (values: object) => {
    try {
      of(values)
    } catch (error) {
      return (error as Error).message
    }
    return ''
  }
  assert.match(messageOf({ lora: { r: -1 } }), /lora\.r is -1/)
  assert.match(
    messageOf({ lora: { r: 2, targetModules: ['lm_head'] } }),
    /lora\.targetModules .*some of q_proj/,
  )
  assert.match(messageOf({ lora: { r: 2, loraDropout: 0.1 } }), /lora.*loraDropout/)
  assert.match(messageOf({ lora: { loraAlpha: 16 } }), /lora\.loraAlpha is 16; it needs lora\.r/)
  assert.match(messageOf({ lora: { adapterPath: 'a' } }), /lora\.adapterPath is a; it needs lora\.r/)
  assert.match(messageOf({ lora: { merge: false } }), /lora\.merge is false; it needs lora\.r/)
  assert.match(
    messageOf({ optimizer: { stateDtype: 'float16' } }),
    /optimizer\.stateDtype .*float32.*bfloat16/,
  )
  assert.match(
    messageOf({ lora: { r: 2 }, model: { dir: 'm', refModelSyncSteps: 4 } }),
    /model\.refModelSyncSteps is 4; it must be 0 with lora\.r/,
  )
  assert.match(
    messageOf({ lora: { r: 2 }, distributed: { shard: 'optimizer' } }),
    /distributed\.shard is optimizer; it must be none with lora\.r/,
  )
  assert.match(
    messageOf({ distributed: { shard: 'weights' } }),
    /distributed\.shard .*none.*optimizer.*gradients/,
  )
})

test.run()
