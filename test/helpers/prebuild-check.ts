/**
 * scripts/test-prebuilds.mjs runs this program, bundled to one file, with each prebuilt addon. It repeats the numeric checks of
 * kernels.test.ts and tests what depends on the compiler's runtime: threads, exceptions, promises, and an exit in the middle of
 * a call.
 */
import '../kernels/kernels.test.js'
import { Worker } from 'node:worker_threads'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import {
  kernelsInfo,
  type LossBatch,
  policyLoss,
  policyLossAsync,
  setKernelThreads,
} from '../../lib/loss/kernels.js'
import { dapo, rapo } from '../../lib/loss/objective.js'
import { locateKernels } from '../../lib/setup/addons.js'
import { makeCase } from './kernels-cases.js'

const test = suite('prebuild')
const objective = rapo({ klCoef: 0.3, entropyCoef: 0.05 })
const batch = makeCase(5003, 64, 'float32', objective, 7).batch as LossBatch<Float32Array>

test('the instruction sets are those of the processor', () => {
  assert.is(kernelsInfo().isas.join(), process.env.RAPO_EXPECTED_ISAS)
})

test('any number of threads gives the same bits, at once and later', async () => {
  setKernelThreads(1)
  const alone = policyLoss(batch, objective)
  setKernelThreads(4)
  const results = [
    policyLoss(batch, objective),
    ...(await Promise.all([1, 2].map(() => policyLossAsync(batch, objective)))),
  ]
  setKernelThreads(0)
  for (const { loss, gradLogits } of results) {
    assert.is(loss, alone.loss)
    assert.equal(gradLogits, alone.gradLogits)
  }
})

test('an exception is caught, on this thread and on others', async () => {
  const broken = { ...batch, logits: batch.logits.slice() }
  broken.logits[40 * 5003 + 17] = Number.NaN
  const outcomes = [async () => policyLoss(broken, objective), () => policyLossAsync(broken, objective)]
  for (const outcome of outcomes) {
    const error = await outcome().catch(e => e)
    assert.instance(error, RapoError)
    assert.is(error.code, 'ERR_RAPO_NON_FINITE')
    assert.match(error.message, 'row 40')
  }
  const bad = { ...batch, tokenIds: new Int32Array(64).fill(5003) }
  assert.throws(
    () => policyLoss(bad, objective),
    (error: RapoError) => error.code === 'ERR_RAPO_INVALID_ARGUMENT',
  )
})

test('a worker thread ends in the middle of a call', async () => {
  const program = `
    const { parentPort, workerData } = require('node:worker_threads')
    const addon = require(workerData.addon)
    const rows = 64, vocabSize = 20000, one = new Float32Array(rows).fill(1)
    const { objective } = workerData
    const batch = { objective, rows, vocabSize, dtype: 'float32', logits: new Float32Array(rows * vocabSize), tokenIds: new Int32Array(rows), tokenWeights: one, advantages: one }
    const run = () => addon.policyLossAsync({ ...batch, control: new addon.Control() }).then(run)
    run()
    setTimeout(() => parentPort.postMessage('running'), 20)`
  const workerData = { addon: locateKernels(), objective: { ...dapo() } }
  const worker = new Worker(program, { eval: true, workerData })
  await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
  assert.is(await worker.terminate(), 1)
  assert.ok(policyLoss(batch, objective).loss)
})

test.run()
