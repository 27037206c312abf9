/**
 * The memory that a call of policyLoss takes beyond its batch and its gradient: how far the process's resident memory
 * rises above what it was before, at its peak, as a share of the bytes of the logits. Prints {"bytes", "percent"}.
 *
 *   tsx bench/memory.ts DTYPE ROWS V PENALTY
 */
import { writeFileSync } from 'node:fs'
import { type BenchDType, makeBatch } from '../lib/bench/batch.js'
import { policyLoss } from '../lib/loss/kernels.js'
import { type Penalty, rapo } from '../lib/loss/objective.js'

const [dtype, rows, vocabSize, penalty] = process.argv.slice(2) as [BenchDType, string, string, Penalty]
const batch = makeBatch(dtype, Number(rows), Number(vocabSize))
const grad = batch.logits.slice()
const objective = rapo({ penalty })
// What the first call of a process needs once: code, threads.
policyLoss(makeBatch(dtype, 64, 5000), objective)
global.gc?.()
try {
  writeFileSync('/proc/self/clear_refs', '5') // Linux: the peak starts anew from here
} catch {} // elsewhere it is the largest so far, which making the batch may have raised already
const before = process.memoryUsage.rss()
policyLoss(batch, objective, { grad })
const bytes = Math.max(0, process.resourceUsage().maxRSS * 1024 - before)
console.log(JSON.stringify({ bytes, percent: (100 * bytes) / batch.logits.byteLength }))
