/** A child process of engine-async.test.ts, with arguments DIR HOW. It ends in the way HOW while a call is running. */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { loadPolicy } from '../../lib/model/engine.js'
import { endless, pack, sampling, workerBootstrap } from './engine-util.js'

const [dir, how] = process.argv.slice(2)
const prompts = pack(Array.from({ length: 64 }, () => [1, 2, 3]))
const open = () => loadPolicy(dir!, { trainable: false })

/** Calls back in the middle of a call that would take longer than any test. */
async function whileGenerating(then: () => void) {
  const policy = await open()
  policy.generate(prompts, endless, { onProgress: done => done > 0 && then() })
}

const ways: Record<string, () => Promise<unknown>> = {
  exit: () => whileGenerating(() => process.exit(3)),
  throw: () =>
    whileGenerating(() =>
      queueMicrotask(() => {
        throw new Error('not caught')
      }),
    ),
  async save() {
    const policy = await open()
    policy.save(dir!)
    setImmediate(() => process.exit(3))
  },
  async worker() {
    const workerData = { dir, call: 'generate' }
    await once(new Worker(workerBootstrap, { eval: true, workerData }), 'message')
    process.exit(3)
  },
  // Ends by itself, but not before the call has ended.
  async nothing() {
    const policy = await open()
    policy.generate(prompts, { ...sampling, n: 16 }).then(() => console.log('generated'))
  },
}
await ways[how!]!()
