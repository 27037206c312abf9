/**
 * npx tsx bench/compilers.ts [--rounds 15] [--rows 128] [--vocab 151936] [A.node B.node]: compares two builds of the kernels
 * addon, by default this machine's prebuilt one and that of build/Release. Both compute value and gradient of the rapo preset
 * on the same arrays, in turns, with every instruction set that both can run here. Times are CPU times. Each result is compared
 * with the oracle before it is timed.
 */
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { type Batch, makeBatch, median, oracle, validate } from '../lib/bench/batch.js'
import type { Logits } from '../lib/loss/kernels.js'
import { rapo } from '../lib/loss/objective.js'
// @ts-expect-error: no types
import { hostTarget, prebuildPath } from '../scripts/prebuilds.mjs'

interface Addon {
  isas(): string[]
  setIsa(name: string): void
  setThreads(n: number): void
  policyLoss(call: object): { loss: number }
}

const root = fileURLToPath(new URL('..', import.meta.url))
const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: '15' },
    rows: { type: 'string', default: '128' },
    vocab: { type: 'string', default: '151936' },
  },
})
const [fileA = prebuildPath(hostTarget()), fileB = 'build/Release/rapo_kernels.node'] = positionals
const load = (file: string): Addon => createRequire(import.meta.url)(path.resolve(root, file))
const addons = [load(fileA), load(fileB)] as const
const rows = Number(flags.rows)
const V = Number(flags.vocab)
const objective = rapo()

console.log(`A ${fileA}\nB ${fileB}\n${rows} × ${V}, one thread, medians of ${flags.rounds} rounds in turns`)
console.log('dtype     isa          A cpu ms  B cpu ms  A / B (quartiles)')
for (const dtype of ['float32', 'bfloat16'] as const) {
  const batch = makeBatch(dtype, rows, V)
  const want = oracle(batch, objective)
  const grad: Logits = dtype === 'float32' ? new Float32Array(rows * V) : new Uint16Array(rows * V)
  for (const isa of addons[0].isas().filter(name => addons[1].isas().includes(name))) {
    for (const [i, addon] of addons.entries()) {
      addon.setIsa(isa)
      addon.setThreads(1)
      validate('AB'[i]!, { loss: call(addon, batch, grad), grad }, want, objective, 64, V)
    }
    const times: [number[], number[]] = [[], []]
    for (let round = 0; round < Number(flags.rounds); ++round) {
      for (const i of (round % 2 ? [1, 0] : [0, 1]) as (0 | 1)[]) {
        const start = process.cpuUsage()
        call(addons[i], batch, grad)
        const { user, system } = process.cpuUsage(start)
        times[i].push((user + system) / 1000)
      }
    }
    const ratios = times[0].map((a, i) => a / times[1][i]!).sort((x, y) => x - y)
    const at = (share: number) => ratios[Math.floor(share * (ratios.length - 1))]!.toFixed(3)
    const [a, b] = times.map(list => median(list).toFixed(1).padStart(8)) as [string, string]
    console.log(`${dtype.padEnd(9)} ${isa.padEnd(12)} ${a}  ${b}  ${at(0.5)} (${at(0.25)}–${at(0.75)})`)
  }
}

/** Returns the loss. */
function call(addon: Addon, batch: Batch, grad: Logits): number {
  return addon.policyLoss({ ...batch, objective, rows, gradLogits: grad, gradDtype: batch.dtype }).loss
}
