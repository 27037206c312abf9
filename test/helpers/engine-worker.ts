/**
 * A worker thread of engine-async.test.ts. If workerData.call is set, it names the call that the thread makes until the thread
 * is terminated, with a message for every progress. Otherwise the thread makes workerData.rounds rounds of calls.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { loadPolicy } from '../../lib/model/engine.js'
import { endless, objective, pack, sampling, trainingBatch } from './engine-util.js'

const { dir, out, call, rounds } = workerData
const say = (done: number) => parentPort!.postMessage(done)
const open = () => loadPolicy(dir, { referenceDir: dir })
const prompts = pack(Array.from({ length: 64 }, () => [1, 2, 3]))

/** A call that would take longer than any test. */
async function generate() {
  const policy = await open()
  policy.generate(prompts, endless, { onProgress: done => done > 0 && say(done) })
}

const calls: Record<string, () => Promise<unknown>> = {
  async load() {
    for (let done = 0; ; done++) {
      const loaded = open()
      say(done)
      await (await loaded).dispose()
    }
  },
  generate,
  queue: () => Promise.all([generate(), generate(), generate()]),
  async accumulate() {
    const policy = await open()
    const made = await policy.generate(prompts, sampling)
    const small = trainingBatch(prompts, made, 1)
    const sequences = Array.from({ length: 40_000 }, () => Array.from({ length: 60 }, (_, t) => 1 + (t % 20)))
    const rows = sequences.length * 50
    const floats = (value: number) => new Float32Array(rows).fill(value)
    await policy.accumulate(small, objective)
    policy.accumulate(
      {
        sequences: pack(sequences),
        rowPositions: Int32Array.from({ length: rows }, (_, i) => 60 * Math.floor(i / 50) + 5 + (i % 50)),
        tokenIds: new Int32Array(rows).fill(3),
        tokenWeights: floats(1 / rows),
        advantages: floats(1),
      },
      objective,
    )
    for (let done = 0; ; done++) {
      await new Promise(resolve => setTimeout(resolve, 30))
      say(done)
    }
  },
  async save() {
    const policy = await open()
    for (let done = 0; ; done++) {
      await policy.save(out)
      await policy.saveState(`${out}/state`)
      say(done)
    }
  },
}

if (call) await calls[call]!()
else {
  const policy = await open()
  for (let round = 0; round < rounds; round++) {
    const params = { ...sampling, n: 8, maxNewTokens: 40 }
    const made = await policy.generate(prompts, params)
    await policy.accumulate(trainingBatch(prompts, made, params.n), objective)
    await policy.step(1e-4)
  }
}
