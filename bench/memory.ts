/**
 * Measures the memory of a call of policyLoss beyond its batch and its gradient: the rise of the process's resident memory to
 * its peak, as a share of the bytes of the logits. Prints {"bytes", "percent"}.
 *
 *     tsx bench/memory.ts DTYPE ROWS V PENALTY
 */
import { writeFileSync } from 'node:fs'
import { type BenchDType, makeBatch } from '../lib/bench/batch.js'
import { policyLoss } from '../lib/loss/kernels.js'
import { type Penalty, rapo } from '../lib/loss/objective.js'

const [dtype, rows, vocabSize, penalty] = process.argv.slice(2) as [BenchDType, string, string, Penalty]
const batch = makeBatch(dtype, Number(rows), Number(vocabSize))
const grad = batch.logits.slice()
const objective = rapo({ penalty })
// A first call takes memory that is needed only once: code and threads.
policyLoss(makeBatch(dtype, 64, 5000), objective)
global.gc?.()
try {
  writeFileSync('/proc/self/clear_refs', '5') // Linux: restarts the recording of the peak
} catch {} // elsewhere the peak is that of the whole process, batch included
const before = process.memoryUsage.rss()
policyLoss(batch, objective, { grad })
const bytes = Math.max(0, process.resourceUsage().maxRSS * 1024 - before)
console.log(JSON.stringify({ bytes, percent: (100 * bytes) / batch.logits.byteLength }))
