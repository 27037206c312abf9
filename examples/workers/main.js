/**
 * Several worker threads, each with rapo of its own: every one trains a small policy with the kernels; the last is
 * terminated in the middle of its work, which harms neither the others nor the process.
 *
 *     npm install && npm start
 */
import { Worker } from 'node:worker_threads'
import { trainPolicy } from './worker.js'

const seeds = [1, 2, 3]
const start = seed => new Worker(new URL('./worker.js', import.meta.url), { workerData: { seed } })
const endOf = worker =>
  new Promise((resolve, reject) => {
    worker.once('message', resolve).once('error', reject)
  })

const endless = start(Infinity)
const stopped = new Promise(resolve => endless.once('exit', resolve))
await endOf(endless) // its first message: it is at work
const results = seeds.map(seed => endOf(start(seed)))
await endless.terminate()
console.log(`terminated a worker in the middle of its work: exit code ${await stopped}`)

for (const [i, result] of (await Promise.all(results)).entries()) {
  const { first, last } = result
  const alone = await trainPolicy(seeds[i])
  const isSame = Object.is(alone.last, last)
  console.log(
    `worker ${seeds[i]}: loss ${first.toFixed(4)} → ${last.toFixed(4)}, ${isSame ? 'the same bits' : 'NOT the same'} as on the main thread`,
  )
  if (!isSame) process.exitCode = 1
}
