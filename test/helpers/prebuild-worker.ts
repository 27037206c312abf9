/**
 * scripts/test-prebuilds.mjs runs this program, bundled to one file, with each prebuilt addon. Only worker threads load the
 * addon, so that Node unloads the addon when the last of them ends. The threads of the kernels' pool must then have ended, and
 * nothing of the addon may be called when the process exits.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { existsSync, readdirSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { isMainThread, Worker, workerData } from 'node:worker_threads'
import { type LossBatch, policyLoss, policyLossAsync, setKernelThreads } from '../../lib/loss/kernels.js'
import { rapo } from '../../lib/loss/objective.js'

const objective = rapo({ klCoef: 0.3, entropyCoef: 0.05 })

/** Number of threads of the process. Waits for ended threads, which the system still lists for a moment. */
async function settled(most: number): Promise<number> {
  const count = () => readdirSync('/proc/self/task').length
  for (let tries = 0; count() > most && tries < 300; tries++) await setTimeout(100)
  return count()
}

if (isMainThread) {
  const threads: number[] = []
  for (const mode of ['sync', 'async', 'error', 'sync', 'async', 'error']) {
    const worker = new Worker(fileURLToPath(import.meta.url), { workerData: mode })
    const [code] = await once(worker, 'exit')
    assert.equal(code, 0)
    // Node's own threads exist after the first workers. Emulators show no threads, or their own.
    if (existsSync('/proc/self/task')) threads.push(await settled(threads[2] ?? Infinity))
  }
  console.log(`threads after each worker: ${threads.join(', ') || 'unknown'}`)
  assert.ok(
    threads.slice(3).every(count => count <= threads[2]!),
    `threads are left over: ${threads}`,
  )
} else {
  setKernelThreads(4)
  const rows = 64
  const vocabSize = 5003
  const batch: LossBatch<Float32Array> = {
    vocabSize,
    logits: Float32Array.from({ length: rows * vocabSize }, (_, i) => Math.sin(i)),
    refLogits: new Float32Array(rows * vocabSize),
    tokenIds: new Int32Array(rows),
    tokenWeights: new Float32Array(rows).fill(1 / rows),
    advantages: new Float32Array(rows).fill(1),
  }
  if (workerData === 'sync') policyLoss(batch, objective)
  if (workerData === 'async') await policyLossAsync(batch, objective)
  if (workerData === 'error')
    assert.throws(() => policyLoss({ ...batch, vocabSize: 0 }, objective), /vocabSize/)
}
