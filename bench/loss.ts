/**
 * `npm run bench`: value and gradient of the rapo preset against torch on the CPU, same batch, same threads, in turns;
 * then each penalty, the overhead of a call, and the memory that one takes.
 *
 *   --rows 128,512  --vocab 151936  --dtype float32,bfloat16  --isa NAME  --threads N  --rounds 15  --json FILE
 *   --scaling       instead: the cost from V = 1000 to 262144, drawn into docs/scaling.svg (scaling.ts)
 *
 * Nothing is timed that has not been validated against the oracle. Without a Python that has torch only rapo is timed.
 */
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { cpus, totalmem } from 'node:os'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import {
  type Batch,
  type BenchDType,
  isasToMeasure,
  makeBatch,
  median,
  oracle,
  timed,
  validate,
  withIsa,
} from '../lib/bench/batch.js'
import { type Peer, startPeer } from '../lib/bench/peer.js'
import { type GradMode, kernelsInfo, policyLoss, setKernelThreads } from '../lib/loss/kernels.js'
import { type Objective, penalties, rapo } from '../lib/loss/objective.js'
import { preparePython } from './peer.js'
import { measureScaling } from './scaling.js'

const { values: flags } = parseArgs({
  options: {
    rows: { type: 'string', default: '128,512' },
    vocab: { type: 'string', default: '151936' },
    dtype: { type: 'string', default: 'float32,bfloat16' },
    isa: { type: 'string', default: '' },
    threads: { type: 'string', default: '0' },
    rounds: { type: 'string', default: '15' },
    json: { type: 'string' },
    scaling: { type: 'boolean', default: false },
  },
})

interface Result {
  name: string
  /** The implementation that peerMs belongs to; null if there is none to compare with. */
  peer: string | null
  dtype: BenchDType
  rows: number
  vocabSize: number
  isa: string
  threads: number
  /** Median time. */
  ms: number
  peerMs: number | null
  /** peerMs / ms */
  ratio: number | null
}

setKernelThreads(Number(flags.threads))
const { threads } = kernelsInfo()
const isas = isasToMeasure(flags.isa)
const best = isas[0]!
const V = Number(flags.vocab)
const objective = rapo()
const python = flags.scaling ? undefined : await preparePython()
const results: Result[] = []
const machine = {
  cpu: cpus()[0]?.model ?? 'unknown',
  cores: cpus().length,
  memoryGiB: Math.round(totalmem() / 2 ** 30),
  platform: `${process.platform}-${process.arch}`,
  node: process.version,
  torch: null as string | null,
}
console.log(
  `${machine.cpu}, ${machine.cores} cores, ${machine.platform}, Node ${machine.node}; ${threads} threads`,
)

if (flags.scaling) {
  measureScaling(best, machine.cpu)
} else {
  console.log(`value and gradient of rapo(), V = ${V}; medians, and how many times as long the other takes`)
  const allRows = flags.rows.split(',').map(Number)
  for (const dtype of flags.dtype.split(',') as BenchDType[]) {
    for (const rows of allRows) await againstTorch(dtype, rows, rows === allRows[0] ? isas : [best])
    comparePenalties(dtype, Math.min(...allRows))
  }
  const overheadUs = measureOverhead()
  const memoryPercent = measureMemory(Math.min(...allRows))
  const output = { machine, results, overheadUs, memoryPercent }
  if (flags.json) writeFileSync(flags.json, `${JSON.stringify(output, null, 2)}\n`)
}

/** A measured call. Its calls alternate with those of the others, so that the machine's load affects all of them. */
interface Contender {
  name: string
  isa: string
  ms: number[]
  run(): number | Promise<number>
}

async function takeTurns(contenders: readonly Contender[], rounds: number): Promise<void> {
  for (let i = 0; i < rounds; ++i) {
    for (const { run, ms } of contenders) ms.push(await run())
  }
}

function own(name: string, isa: string, batch: Batch, grad: GradMode, of = objective): Contender {
  const run = () => withIsa(isa, () => timed(() => policyLoss(batch, of, { grad })))
  return { name, isa, ms: [], run }
}

/** Fewer rounds for larger batches, and always an odd number. */
function roundsFor(rows: number): number {
  return Math.max(5, Math.round((Number(flags.rounds) * 128) / rows)) | 1
}

async function againstTorch(dtype: BenchDType, rows: number, isas: readonly string[]): Promise<void> {
  const batch = makeBatch(dtype, rows, V)
  const want = oracle(batch, objective)
  const grad = batch.logits.slice()
  console.log(`\n${dtype}, N = ${rows}`)
  const mine = isas.map(isa => own('rapo', isa, batch, grad))
  for (const isa of isas) {
    const { loss } = withIsa(isa, () => policyLoss(batch, objective, { grad }))
    validate(`rapo ${isa}`, { loss, grad }, want, objective, 64, V)
  }
  const modes = [
    own('rapo, gradient into a new array', best, batch, 'new'),
    own('rapo, value alone', best, batch, 'none'),
  ]
  const peer = python ? startPeer(python, batch, objective, threads) : undefined
  const theirs: Contender[] = []
  for (const name of peer ? ['eager', 'compile'] : []) {
    const answer = await peer!.prepare(name)
    if ('error' in answer) {
      console.log(`  torch ${name}: left out (${answer.error})`)
      continue
    }
    machine.torch = answer.torch
    validate(`torch ${name}`, answer, want, objective, 1024, V)
    theirs.push({ name: `torch ${name}`, isa: '', ms: [], run: () => peer!.time(name) })
  }
  const copy: Contender = { name: 'copy', isa: '', ms: [], run: () => copyTime(peer, batch, grad) }
  await takeTurns([...mine, ...modes, ...theirs, copy], roundsFor(rows))
  await peer?.close()

  const add = ({ name, isa, ms }: Contender, peerName: string | null, peerMs: number | null) =>
    report(name, isa, dtype, rows, median(ms), peerName, peerMs)
  for (const contender of [...mine, ...modes]) {
    if (theirs.length === 0 || modes.includes(contender)) add(contender, null, null)
    else for (const other of theirs) add(contender, other.name, median(other.ms))
  }
  // The bytes that must move: both rows of logits are read once and the gradient is written once. A copy moves two such arrays.
  add(mine[0]!, `a copy of as many bytes${peer ? '' : ', one thread'}`, 1.5 * median(copy.ms))
}

/** The time to copy the logits, by torch on all threads or by this thread. */
function copyTime(peer: Peer | undefined, { logits }: Batch, grad: Batch['logits']) {
  return peer ? peer.time('copy') : timed(() => grad.set(logits))
}

/** Value and gradient of each penalty, in turns. The difference between `forward` and `none` is the cost of the reference. */
function comparePenalties(dtype: BenchDType, rows: number): void {
  const { refLogits, refWeights, ...plain } = makeBatch(dtype, rows, V)
  const grad = plain.logits.slice()
  const contenders = penalties.map(penalty => {
    const batch = {
      ...plain,
      ...(penalty !== 'none' && { refLogits }),
      ...(penalty.startsWith('forward') && { refWeights }),
    } as Batch
    const of: Objective = rapo({ penalty, klCoef: penalty === 'none' ? 0 : 0.02 })
    const { loss } = policyLoss(batch, of, { grad })
    validate(penalty, { loss, grad }, oracle(batch, of), of, 64, V)
    return own(`penalty ${penalty}`, best, batch, grad, of)
  })
  for (let i = 0; i < roundsFor(rows); ++i) {
    for (const { run, ms } of contenders) ms.push(run() as number)
  }
  const time = (name: string) => median(contenders.find(c => c.name === name)!.ms)
  console.log(
    `\n${dtype}, N = ${rows}: each penalty, and how many times as long as none and as forward it takes`,
  )
  for (const { name, isa, ms } of contenders) {
    const others = ['penalty none', 'penalty forward'] as const
    for (const other of others) record(name, isa, dtype, rows, median(ms), other, time(other))
    const versus = others.map(other => `${(median(ms) / time(other)).toFixed(2)}×`.padStart(8)).join('')
    console.log(`  ${name.padEnd(32)} ${isa.padEnd(10)} ${median(ms).toFixed(2).padStart(9)} ms${versus}`)
  }
  const reference = time('penalty forward') - time('penalty none')
  const share = (100 * reference) / time('penalty forward')
  console.log(`  the reference costs ${reference.toFixed(1)} ms of forward's, ${share.toFixed(0)} %`)
}

function record(
  name: string,
  isa: string,
  dtype: BenchDType,
  rows: number,
  ms: number,
  peer: string | null,
  peerMs: number | null,
): void {
  const ratio = peerMs === null ? null : peerMs / ms
  results.push({ name, peer, dtype, rows, vocabSize: V, isa, threads, ms, peerMs, ratio })
}

/** Records the result and prints it. */
function report(...result: Parameters<typeof record>): void {
  const [name, isa, , , ms, peer, peerMs] = result
  record(...result)
  const who = `${name.padEnd(32)} ${isa.padEnd(10)} ${ms.toFixed(2).padStart(9)} ms`
  const versus =
    peer && `   ${peer.padEnd(26)} ${peerMs!.toFixed(2).padStart(9)} ms  ${(peerMs! / ms).toFixed(2)}×`
  console.log(`  ${who}${versus ?? ''}`)
}

/** The time of a call with almost nothing to compute, in µs. */
function measureOverhead(): number {
  const batch = makeBatch('float32', 2, 3)
  const grad = new Float32Array(6)
  const calls = 2000
  const one = () => {
    for (let i = 0; i < calls; ++i) policyLoss(batch, objective, { grad })
  }
  for (let i = 0; i < 10; ++i) one() // until JavaScript is compiled
  const us = median(Array.from({ length: 31 }, () => (timed(one) * 1e3) / calls))
  console.log(`\na call on 2 × 3 logits takes ${us.toFixed(2)} µs`)
  return us
}

/** In a process of its own, where nothing else has raised the peak. */
function measureMemory(rows: number): number {
  const script = fileURLToPath(new URL('memory.ts', import.meta.url))
  const args = ['--import', 'tsx', script, 'float32', `${rows}`, `${V}`, 'forward']
  const { percent } = JSON.parse(execFileSync(process.execPath, args, { encoding: 'utf8' }))
  console.log(`a call on ${rows} × ${V} logits takes ${percent.toFixed(2)} % of their memory on top`)
  return percent
}
