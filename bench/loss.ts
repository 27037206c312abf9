/**
 * `npm run bench`: value and gradient of the rapo preset against torch on the CPU, same batch, same threads, in turns.
 *
 *   --rows 128,512  --vocab 151936  --dtype float32,bfloat16  --isa NAME  --threads N  --rounds 15  --json FILE
 *   --penalties  times each penalty against none as well
 *
 * Nothing is timed that has not been validated against the oracle. Peers run in the Python that RAPO_PYTHON names, or
 * python3, where it has torch; without one only rapo is timed.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { cpus, tmpdir, totalmem } from 'node:os'
import { join } from 'node:path'
import { createInterface, type Interface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import {
  type GradMode,
  kernelsInfo,
  type Logits,
  type LogitsDType,
  type LossBatch,
  policyLoss,
  setKernelThreads,
} from '../lib/kernels.js'
import { loadKernels } from '../lib/native.js'
import { penalties, rapo } from '../lib/objective.js'
import { createRandom } from '../lib/random.js'

const { values: flags } = parseArgs({
  options: {
    rows: { type: 'string', default: '128' },
    vocab: { type: 'string', default: '151936' },
    dtype: { type: 'string', default: 'float32,bfloat16' },
    isa: { type: 'string', default: '' },
    threads: { type: 'string', default: '0' },
    rounds: { type: 'string', default: '15' },
    json: { type: 'string' },
    penalties: { type: 'boolean', default: false },
  },
})

type Batch = LossBatch & { dtype: LogitsDType }

interface Result {
  name: string
  peer: string | null
  dtype: LogitsDType
  rows: number
  vocabSize: number
  isa: string
  threads: number
  /** Medians. */
  ms: number
  peerMs: number | null
  ratio: number | null
}

const objective = rapo()
const raw = loadKernels() as unknown as {
  setIsa(name: string): void
  policyLossReference(batch: object, objective: object, outputs: object): { loss: number }
}

raw.setIsa(flags.isa)
setKernelThreads(Number(flags.threads))
const { isa, threads } = kernelsInfo()
const V = Number(flags.vocab)
const rounds = Number(flags.rounds)
const results: Result[] = []

const machine = {
  cpu: cpus()[0]?.model ?? 'unknown',
  cores: cpus().length,
  memoryGiB: Math.round(totalmem() / 2 ** 30),
  platform: `${process.platform}-${process.arch}`,
  node: process.version,
  torch: null as string | null,
}
console.log(`${machine.cpu}, ${machine.cores} cores, ${machine.platform}, Node ${machine.node}`)
console.log(`rapo kernels: ${isa}, ${threads} threads; V = ${V}; medians of ${rounds} calls`)

for (const dtype of flags.dtype.split(',') as LogitsDType[]) {
  for (const rows of flags.rows.split(',').map(Number)) await benchmark(dtype, rows)
}
if (flags.penalties) comparePenalties(Number(flags.rows.split(',')[0]))
if (flags.json) writeFileSync(flags.json, `${JSON.stringify({ machine, results }, null, 2)}\n`)

async function benchmark(dtype: LogitsDType, rows: number): Promise<void> {
  const batch = makeBatch(dtype, rows)
  const want = new Float32Array(rows * V)
  const { loss } = raw.policyLossReference({ ...batch, rows }, objective, {
    gradLogits: want,
    gradDtype: 'float32',
  })
  const grad = batch.logits.slice()
  const modes: [string, GradMode][] = [
    ['gradient into a given array', grad],
    ['gradient into a new array', 'new'],
    ['value alone', 'none'],
  ]
  const got = policyLoss(batch, objective, { grad })
  validate('rapo', got.loss, widen(got.gradLogits, dtype), loss, want, dtype)

  console.log(`\n${dtype}, N = ${rows}`)
  const peer = await startPeer(batch, rows)
  const peers = peer ? ['eager', 'compile'] : []
  const usable: string[] = []
  for (const name of peers) {
    const answer = await peer!.ask(`prepare ${name}`)
    if (answer.error) {
      console.log(`  torch ${name}: left out (${answer.error})`)
      continue
    }
    machine.torch = answer.torch!
    const file = readFileSync(join(peer!.dir, 'grad.bin'))
    const peerGrad = new Float32Array(file.buffer, file.byteOffset, rows * V)
    validate(
      `torch ${name}`,
      answer.loss!,
      peerGrad,
      loss,
      want,
      dtype,
      name === 'eager-half' ? 0.03 : 2 ** -14,
    )
    usable.push(name)
  }

  // In turns, so that a change in the machine's load hits all of them.
  const times = new Map<string, number[]>()
  const add = (name: string, ms: number[]) => times.set(name, [...(times.get(name) ?? []), ...ms])
  const batches = Math.ceil(rounds / 5)
  for (let i = 0; i < batches; ++i) {
    for (const [name, mode] of modes) add(name, timeOwn(batch, mode, 5))
    for (const name of usable) add(name, (await peer!.ask(`time ${name} 5`)).ms!)
  }
  await peer?.close()

  const own = median(times.get(modes[0]![0])!)
  const report = (name: string, peerName: string | null, ms: number, peerMs: number | null) => {
    const ratio = peerMs === null ? null : peerMs / ms
    results.push({ name, peer: peerName, dtype, rows, vocabSize: V, isa, threads, ms, peerMs, ratio })
    const versus = ratio === null ? '' : `   ${peerMs!.toFixed(1).padStart(8)} ms   ${ratio.toFixed(1)}×`
    console.log(`  ${(peerName ?? name).padEnd(44)} ${ms.toFixed(2).padStart(8)} ms${versus}`)
  }
  for (const [name] of modes) report(name, null, median(times.get(name)!), null)
  for (const name of usable) report('rapo', `rapo against torch ${name}`, own, median(times.get(name)!))
  // What must move at least: both rows of logits read once, the gradient written once.
  const bytes = 3 * grad.byteLength
  const copy = median(timeCopy(batch.logits, grad))
  const [speed, copySpeed] = [bytes / own / 1e6, (2 * grad.byteLength) / copy / 1e6]
  console.log(`  ${speed.toFixed(1)} GB/s; a plain copy on one thread moves ${copySpeed.toFixed(1)} GB/s`)
}

/** Value and gradient of each penalty in float32, in turns; the ratio says what it costs more than none. */
function comparePenalties(rows: number): void {
  const { refLogits, refWeights, ...plain } = makeBatch('float32', rows)
  const grad = new Float32Array(rows * V)
  const calls = penalties.map(penalty => {
    const batch = {
      ...plain,
      ...(penalty !== 'none' && { refLogits }),
      ...(penalty.startsWith('forward') && { refWeights }),
    } as Batch
    return {
      penalty,
      batch,
      objective: rapo({ penalty, klCoef: penalty === 'none' ? 0 : 0.02 }),
      ms: [] as number[],
    }
  })
  for (const { penalty, batch, objective } of calls) {
    const want = new Float32Array(rows * V)
    const { loss } = raw.policyLossReference({ ...batch, rows }, objective, {
      gradLogits: want,
      gradDtype: 'float32',
    })
    validate(penalty, policyLoss(batch, objective, { grad }).loss, grad, loss, want, 'float32')
  }
  for (let i = 0; i < rounds; ++i) {
    for (const { batch, objective, ms } of calls) ms.push(...timeOwn(batch, grad, 1, objective))
  }
  console.log(`\nfloat32, N = ${rows}, each penalty against none`)
  const none = median(calls[0]!.ms)
  for (const { penalty, ms } of calls) {
    const own = median(ms)
    const name = `penalty ${penalty}`
    results.push({
      name,
      peer: 'penalty none',
      dtype: 'float32',
      rows,
      vocabSize: V,
      isa,
      threads,
      ms: own,
      peerMs: none,
      ratio: none / own,
    })
    console.log(`  ${name.padEnd(44)} ${own.toFixed(2).padStart(8)} ms   ${(own / none).toFixed(2)}× none`)
  }
}

/** Log-normal-like logits, φ of 0.7 and 1, ratios about 1: a batch in the middle of training. */
function makeBatch(dtype: LogitsDType, rows: number): Batch {
  const random = createRandom(1)
  const noise = Float32Array.from({ length: 65537 }, () => 6 * (random.float() + random.float() - 1))
  const logits = new Float32Array(rows * V)
  const refLogits = new Float32Array(rows * V)
  for (let i = 0; i < logits.length; ++i) {
    logits[i] = noise[i % 65537]!
    refLogits[i] = logits[i]! + 0.1 * noise[(7 * i) % 65537]!
  }
  const fill = (f: (i: number) => number) => Float32Array.from({ length: rows }, (_, i) => f(i))
  return {
    vocabSize: V,
    dtype,
    logits: narrow(logits, dtype),
    refLogits: narrow(refLogits, dtype),
    tokenIds: Int32Array.from({ length: rows }, () => random.below(V)),
    tokenWeights: fill(() => 1 / rows),
    advantages: fill(() => 2 * random.float() - 1),
    refWeights: fill(i => (i % 2 ? 1 : 0.7)),
    oldLogprobs: fill(() => -Math.log(V) + random.float()),
  }
}

function narrow(values: Float32Array, dtype: LogitsDType): Logits {
  if (dtype === 'float32') return values
  if (dtype !== 'bfloat16') throw new Error('the benchmark knows float32 and bfloat16')
  return Uint16Array.from(new Uint32Array(values.buffer), b => (b + 0x7fff + ((b >>> 16) & 1)) >>> 16)
}

function widen(values: Logits, dtype: LogitsDType): Float32Array {
  if (dtype === 'float32') return values as Float32Array
  return new Float32Array(Uint32Array.from(values, half => half << 16).buffer)
}

/**
 * Against the oracle, row by row: 64 float32 roundings of the row's largest element and of the weight that multiplies
 * the difference of two log-probs, and one rounding of the gradient's type. torch adds up the vocabulary in float32 and
 * is given 1024. (Half precision throughout would be off by a tenth and more, so torch too computes in float32.)
 */
function validate(
  who: string,
  loss: number,
  grad: Float32Array,
  wantLoss: number,
  want: Float32Array,
  dtype: LogitsDType,
  relative = 64 * 2 ** -24,
): void {
  if (!(Math.abs(loss - wantLoss) <= relative * Math.max(1, Math.abs(wantLoss)))) {
    throw new Error(`${who}: the loss is ${loss}, the oracle's ${wantLoss}; not timed`)
  }
  for (let start = 0; start < want.length; start += V) {
    let largest = objective.klCoef / (want.length / V)
    for (let i = start; i < start + V; ++i) largest = Math.max(largest, Math.abs(want[i]!))
    for (let i = start; i < start + V; ++i) {
      const limit = relative * largest + (dtype === 'float32' ? 0 : 2 ** -8) * Math.abs(want[i]!)
      if (!(Math.abs(grad[i]! - want[i]!) <= limit)) {
        throw new Error(
          `${who}: gradient [${start / V}, ${i - start}] is ${grad[i]}, the oracle's ${want[i]}; not timed`,
        )
      }
    }
  }
}

function timeOwn(batch: Batch, grad: GradMode, times: number, of = objective): number[] {
  return Array.from({ length: times }, () => {
    const start = performance.now()
    policyLoss(batch, of, { grad })
    return performance.now() - start
  })
}

function timeCopy(from: Logits, to: Logits): number[] {
  return Array.from({ length: 5 }, () => {
    const start = performance.now()
    to.set(from)
    return performance.now() - start
  })
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((x, y) => x - y)
  const middle = sorted.length >> 1
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

interface Answer {
  loss?: number
  torch?: string
  error?: string
  ms?: number[]
}

interface Peer {
  dir: string
  ask(command: string): Promise<Answer>
  close(): Promise<void>
}

async function startPeer(batch: Batch, rows: number): Promise<Peer | undefined> {
  const python = process.env.RAPO_PYTHON || 'python3'
  const check = spawn(python, ['-c', 'import torch, numpy'], { stdio: 'ignore' })
  const found = await new Promise(resolve => {
    check.once('error', () => resolve(false)).once('exit', code => resolve(code === 0))
  })
  if (!found) {
    console.log(`  no peers: ${python} has no torch and numpy (RAPO_PYTHON names another Python)`)
    return undefined
  }
  const dir = mkdtempSync(join(tmpdir(), 'rapo-bench-'))
  const { logits, refLogits, tokenIds, tokenWeights, advantages, refWeights, oldLogprobs } = batch
  const arrays = { logits, refLogits, tokenIds, tokenWeights, advantages, refWeights, oldLogprobs }
  for (const [name, array] of Object.entries(arrays)) {
    if (array) {
      writeFileSync(
        join(dir, `${name}.bin`),
        new Uint8Array(array.buffer, array.byteOffset, array.byteLength),
      )
    }
  }
  const spec = { rows, vocabSize: V, dtype: batch.dtype, threads, objective }
  writeFileSync(join(dir, 'batch.json'), JSON.stringify(spec))
  const script = fileURLToPath(new URL('torch_loss.py', import.meta.url))
  const child = spawn(python, [script, dir], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  const lines: Interface = createInterface({ input: child.stdout })
  const died = once(child, 'exit').then(([code]) => {
    throw new Error(`${script} ended with code ${code}`)
  })
  died.catch(() => undefined)
  return {
    dir,
    async ask(command) {
      child.stdin.write(`${command}\n`)
      const [line] = (await Promise.race([once(lines, 'line'), died])) as [string]
      return JSON.parse(line) as Answer
    },
    async close() {
      child.stdin.end()
      await died.catch(() => undefined)
      rmSync(dir, { recursive: true, force: true })
    },
  }
}
