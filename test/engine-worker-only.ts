/** Run by engine-async.test.ts: loads the engine in worker threads alone, one after the other. */
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'

const bootstrap = `import('tsx/esm/api').then(tsx => {
  tsx.register()
  return import(${JSON.stringify(new URL('engine-worker.ts', import.meta.url).href)})
})`
for (let i = 0; i < 3; i++) {
  const workerData = { dir: process.argv[2], rounds: i }
  const worker = new Worker(bootstrap, { eval: true, workerData })
  const code = await new Promise((resolve, reject) => worker.on('exit', resolve).on('error', reject))
  if (code !== 0) throw new Error(`worker ended with ${code}`)
  await sleep(100)
}
console.log('all workers ended well')
