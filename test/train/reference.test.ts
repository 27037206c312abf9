/** The reference that moves to the policy every few steps (TR-DPO), and is a part of the checkpoints from then on. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { parseConfig } from '../../lib/config/load.js'
import type { LoadPolicy } from '../../lib/model/policy.js'
import { readLatestCheckpoint } from '../../lib/train/checkpoint.js'
import { train } from '../../lib/train/train.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'
import { fingerprint } from '../helpers/run-files.js'
import { makeConfig } from '../helpers/train-child.js'

const model = makeFakeModel({ 1: Math.log(5), 10: Math.log(5) })
const newRun = () => path.join(makeTempDir(), 'run')
const objective = { klCoef: 1 }
const messageOf = (work: Promise<unknown>) =>
  work.then(
    () => '',
    error => (error as Error).message,
  )
const weightsIn = (dir: string): number[] => JSON.parse(readFileSync(path.join(dir, 'weights.json'), 'utf8'))

test('every N steps the reference moves to the policy, and only then is it saved', async () => {
  const output = newRun()
  const shares: (number | string)[] = []
  const loadPolicy: LoadPolicy = async (from, options) => {
    const policy = await loadFakePolicy(from, options)
    return {
      ...policy,
      step: rate => {
        shares.push('step')
        return policy.step(rate)
      },
      syncReference: share => {
        shares.push(share)
        return policy.syncReference!(share)
      },
    }
  }
  const config = makeConfig(output, model, {
    model: { refModelSyncSteps: 2, refModelMixupAlpha: 0.25 },
    objective,
    run: { steps: 5, saveEvery: 1, keepCheckpoints: 9 },
  })
  await train(config, { loadPolicy })
  assert.equal(shares, ['step', 'step', 0.25, 'step', 'step', 0.25, 'step'])
  const step = (number: number) => path.join(output, 'checkpoints', `step-00000${number}`)
  const reference = (number: number) => path.join(step(number), 'rapo', 'reference')
  assert.not(existsSync(reference(1)))
  const mixed = (before: readonly number[], number: number) =>
    weightsIn(step(number)).map((weight, v) => 0.25 * weight + (1 - 0.25) * before[v]!)
  assert.equal(weightsIn(reference(2)), mixed(weightsIn(model), 2))
  assert.equal(weightsIn(reference(3)), weightsIn(reference(2)))
  assert.equal(weightsIn(reference(4)), mixed(weightsIn(reference(2)), 4))
  assert.is(readLatestCheckpoint(output)!.referenceDir, reference(5))
})

test('a moved reference changes what is learnt', async () => {
  const [still, moved] = [newRun(), newRun()]
  const run = { steps: 4 }
  await train(makeConfig(still, model, { objective, run }), { loadPolicy: loadFakePolicy })
  const changes = { objective, run, model: { refModelSyncSteps: 2 } }
  await train(makeConfig(moved, model, changes), { loadPolicy: loadFakePolicy })
  assert.not.equal(fingerprint(moved).weights, fingerprint(still).weights)
})

test('a run that is killed and resumed gives the same bits', async () => {
  const changes = {
    model: { refModelSyncSteps: 3, refModelMixupAlpha: 0.6 },
    objective,
    run: { steps: 12, saveEvery: 2 },
  }
  const whole = newRun()
  await train(makeConfig(whole, model, changes), { loadPolicy: loadFakePolicy })
  const killed = newRun()
  for (const [place, count] of [
    ['accumulate', 3],
    ['onStep', 3],
    ['save', 2],
    ['step', 4],
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
  const referenceOf = (run: string) => weightsIn(readLatestCheckpoint(run)!.referenceDir!)
  assert.equal(referenceOf(killed), referenceOf(whole))
})

test('a failure after the reference moved leaves the state before it', async () => {
  const output = newRun()
  const config = makeConfig(output, model, {
    model: { refModelSyncSteps: 2 },
    objective,
    sampling: { filterGroups: 'reward', maxNumGenBatches: 1 },
    run: { steps: 3, saveEvery: 1 },
  })
  const failing: LoadPolicy = async (from, options) => ({
    ...(await loadFakePolicy(from, options)),
    syncReference: async () => {
      throw new Error('it broke')
    },
  })
  assert.is(await messageOf(train(config, { loadPolicy: failing })), 'it broke')
  assert.is(readLatestCheckpoint(output)!.trainer.step, 1)
})

test('what cannot be is refused before anything is loaded or lost', async () => {
  const base = { model: { dir: 'm', refModelSyncSteps: 2 }, task: { verifier: 'math' } }
  assert.throws(
    () => parseConfig({ ...base, objective: { penalty: 'none' } }),
    'model.refModelSyncSteps is 2; it must be 0 without a penalty: there is no reference',
  )
  assert.throws(
    () => parseConfig({ ...base, model: { ...base.model, refModelMixupAlpha: 0 } }),
    'model.refModelMixupAlpha is 0; it must be a number > 0 and ≤ 1',
  )
  const changes = { model: { refModelSyncSteps: 2 } }
  const without: LoadPolicy = async (from, options) => {
    const { syncReference: _, ...policy } = await loadFakePolicy(from, options)
    return policy
  }
  assert.match(
    await messageOf(train(makeConfig(newRun(), model, changes), { loadPolicy: without })),
    'model.refModelSyncSteps is 2; it must be 0 for a policy without syncReference and saveReference',
  )
  const [small, large] = [makeFakeModel(), makeFakeModel()]
  writeFileSync(path.join(small, 'config.json'), '{"hidden_size":8,"num_hidden_layers":2}')
  writeFileSync(path.join(large, 'config.json'), '{"hidden_size":8,"num_hidden_layers":4}')
  const run = newRun()
  const message = await messageOf(
    train(makeConfig(run, small, { model: { ...changes.model, reference: large } }), {
      loadPolicy: loadFakePolicy,
    }),
  )
  assert.match(message, `num_hidden_layers is 4 in ${large} and 2 in ${small}`)
  assert.not(existsSync(run))
})

test.run()
