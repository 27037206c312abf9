/** Disk predicted before a run: by hand for a real model's shape, against a checkpoint of the engine, and the refusal. */
import { existsSync, readdirSync, statfsSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import type { RapoError } from '../../lib/base/errors.js'
import { parseConfig } from '../../lib/config/load.js'
import { predictMemory } from '../../lib/model/engine.js'
import { readLatestCheckpoint, writeCheckpoint } from '../../lib/train/checkpoint.js'
import {
  checkDisk,
  checkpointBytes,
  describeDisk,
  formatDisk,
  freeDisk,
  planDisk,
} from '../../lib/train/disk.js'
import { train } from '../../lib/train/train.js'
import { loadPolicy, newModel } from '../helpers/engine-util.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'
import { fingerprint } from '../helpers/run-files.js'
import { makeConfig } from '../helpers/train-child.js'

const P = 494_032_768
/** Of Qwen2.5-0.5B in bfloat16. */
const half = { weights: 2 * P, gradients: 4 * P, reference: 2 * P }
const bfloat16 = { dtype: 'bfloat16' }

const evalOf = (run: object, every: number) => {
  const { run: own, eval: evaluation } = parseConfig({
    ...{ model: { dir: 'm' }, task: { verifier: 'math' } },
    ...{ run: { output: 'o', ...run }, eval: { every } },
  })
  return { run: own, eval: evaluation }
}

const configOf = (run: object, model: object = {}) =>
  parseConfig({ model: { dir: 'm', ...model }, task: { verifier: 'math' }, run: { output: 'o', ...run } })

test('a checkpoint is the weights, three float32 numbers a parameter, and a reference that moves', () => {
  const plan = (run: object, model = {}) => planDisk(configOf(run, { ...bfloat16, ...model }), half)
  const two = plan({})
  assert.equal([two.weights, two.state, two.reference], [2 * P, 12 * P, 0])
  // A hundred steps, saved every fifty: two checkpoints, although three may lie there.
  assert.equal([two.checkpoint, two.count, two.peak], [14 * P, 2, 28 * P])
  const many = { steps: 400, saveEvery: 50 }
  assert.is(plan(many).peak, 3 * 14 * P)
  assert.is(plan({ ...many, keepCheckpoints: 1 }).peak, 2 * 14 * P)
  assert.is(plan({ ...many, keepCheckpoints: 5, saveOptimizer: 'last' }).peak, 6 * 2 * P + 2 * 12 * P)
  assert.is(plan({ steps: 3, saveOptimizer: 'last' }).peak, 14 * P)
  // The best one, and while another is written the one that is the best until then; an evaluation may add a checkpoint.
  const best = { ...many, keepBest: true }
  const planBest = (run: object, every: number) =>
    planDisk({ ...configOf({}, bfloat16), ...evalOf(run, every) }, half)
  assert.is(planBest(best, 10).count, 4)
  assert.is(planBest({ ...best, steps: 50 }, 50).count, 1 + 1)
  const { optimizer, ...rest } = configOf({}, bfloat16)
  assert.is(planDisk({ ...rest, optimizer: { ...optimizer, stateDtype: 'bfloat16' } }, half).state, 8 * P)
  const moving = plan(many, { refModelSyncSteps: 10 })
  assert.equal([moving.reference, moving.checkpoint, moving.peak], [2 * P, 16 * P, 48 * P])
})

test('what is predicted is what a checkpoint of the engine takes', async () => {
  const dir = await newModel({ hidden_size: 128, intermediate_size: 512 })
  const memory = await predictMemory(dir, {}, { promptTokens: 1, maxNewTokens: 1, sequences: 1 })
  const run = makeTempDir()
  const policy = await loadPolicy(dir)
  const cursor = { epoch: 0, position: 0, fingerprint: 'f' }
  ;(await writeCheckpoint(run, dir, policy, { step: 1, cursor }, { keep: 1 })).commit()
  await policy.dispose()
  const [actual, { checkpoint }] = [checkpointBytes(run), planDisk(configOf({}), memory)]
  // Names and settings, some KB, are not in the plan; parameters are 4 MB here.
  assert.ok(Math.abs(actual / checkpoint - 1) < 0.02, `${actual} for ${checkpoint}`)
  assert.is(checkpointBytes(makeTempDir()), 0)
})

test('the room is that of the file system on which the directory will be made', async () => {
  const dir = makeTempDir()
  const { bsize, blocks } = statfsSync(dir)
  const free = (await freeDisk(path.join(dir, 'not', 'there')))!
  assert.ok(free >= 0 && free <= blocks * bsize)
  if (existsSync('/proc/self')) assert.is(await freeDisk('/proc/self'), undefined)
})

test('a run whose checkpoints do not fit is refused, with the parts; the line at the start says what they take', () => {
  const config = configOf({ steps: 400 }, bfloat16)
  const plan = planDisk(config, half)
  checkDisk(plan, config, plan.peak)
  checkDisk(plan, config, undefined)
  assert.throws(
    () => checkDisk(plan, config, plan.peak - 1),
    (error: RapoError) =>
      error.code === 'ERR_RAPO_IO' &&
      error.message.startsWith(
        `the checkpoints need 20.75 GB of disk, and 20.75 GB are free for them in ${path.resolve('o')}\n`,
      ) &&
      error.message.includes(formatDisk(plan)) &&
      error.message.includes('run.saveOptimizer last'),
  )
  assert.match(formatDisk(plan), /masters and moments +5.93 GB\n.* 6.92 GB\n.* 3\n/)
  assert.is(
    describeDisk(plan, 3e10),
    'disk: a checkpoint has 6.92 GB, at most 3 at once: 20.75 GB of 30.00 GB free',
  )
})

test('training is refused before anything is written, where its checkpoints cannot fit', async () => {
  const output = path.join(makeTempDir(), 'run')
  const config = parseConfig({
    model: { dir: 'models/countdown-base' },
    data: { train: 'data/countdown/train.jsonl' },
    task: { verifier: 'countdown' },
    sampling: { maxNewTokens: 16 },
    run: { output, steps: 1e9, saveEvery: 1, keepCheckpoints: 1e9 },
  })
  const error = await train(config).catch(error => error)
  assert.match(error.message, /^the checkpoints need \d+\.\d\d GB of disk/)
  assert.not(existsSync(output))
})

test('saveOptimizer last: the newest checkpoint alone has the state, and the same bits', async () => {
  const model = makeFakeModel({ 1: Math.log(5), 10: Math.log(5) })
  const make = async (saveOptimizer: string, steps = 12) => {
    const output = path.join(makeTempDir(), 'run')
    const run = { steps, saveEvery: 4, keepCheckpoints: 3, saveOptimizer }
    const config = makeConfig(output, model, { run })
    await train(config, { loadPolicy: loadFakePolicy })
    return { output, config }
  }
  const [all, last] = [await make('all'), await make('last')]
  const states = ({ output }: { output: string }) =>
    readdirSync(path.join(output, 'checkpoints'))
      .filter(name => existsSync(path.join(output, 'checkpoints', name, 'rapo', 'state.safetensors')))
      .sort()
  assert.equal(states(all), ['step-000004', 'step-000008', 'step-000012'])
  assert.equal(states(last), ['step-000012'])
  assert.equal(readdirSync(path.join(last.output, 'checkpoints')).sort(), [
    'latest',
    'step-000004',
    'step-000008',
    'step-000012',
  ])
  assert.equal(fingerprint(last.output), fingerprint(all.output))

  // Resumed from the newest: the same bits as without a stop.
  const half = await make('last', 8)
  await train(last.config, { loadPolicy: loadFakePolicy, resume: true })
  const on = { ...half.config, run: { ...half.config.run, steps: 12 } }
  await train(on, { loadPolicy: loadFakePolicy, resume: true })
  assert.equal(fingerprint(half.output), fingerprint(last.output))

  writeFileSync(path.join(last.output, 'checkpoints', 'latest'), 'step-000008\n')
  const error = await train(last.config, { loadPolicy: loadFakePolicy, resume: true }).catch(error => error)
  assert.match(error.message, /step-000008 has no rapo\/state.safetensors, .* run.saveOptimizer last keeps/)
  assert.equal(states(last), ['step-000012'])
  assert.is(readLatestCheckpoint(last.output)!.trainer.step, 8)
})

test.run()
