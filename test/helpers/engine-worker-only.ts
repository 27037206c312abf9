/** A child process of engine-async.test.ts: loads the engine in worker threads only, one after the other. */
import { Worker } from 'node:worker_threads'
import { workerBootstrap } from './engine-util.js'

for (let rounds = 0; rounds < 3; rounds++) {
  const worker = new Worker(workerBootstrap, { eval: true, workerData: { dir: process.argv[2], rounds } })
  const code = await new Promise((resolve, reject) => worker.on('exit', resolve).on('error', reject))
  if (code !== 0) throw new Error(`worker ended with ${code}`)
}
console.log('all workers ended well')
