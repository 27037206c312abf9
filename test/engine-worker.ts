/** A worker thread of engine-async.test.ts: makes calls for workerData.rounds rounds (without: until terminated). */
import { parentPort, workerData } from 'node:worker_threads'
import { loadPolicy } from '../lib/model/engine.js'
import { objective, pack, sampling, trainingBatch } from './engine-util.js'

const policy = await loadPolicy(workerData.dir, { referenceDir: workerData.dir })
const prompts = pack(Array.from({ length: 64 }, () => [1, 2, 3]))
parentPort!.postMessage('started')
for (let round = 0; round < (workerData.rounds ?? Number.POSITIVE_INFINITY); round++) {
  const params = { ...sampling, n: 8, maxNewTokens: 40 }
  const made = await policy.generate(prompts, params)
  await policy.accumulate(trainingBatch(prompts, made, params.n), objective)
  await policy.step(1e-4)
}
