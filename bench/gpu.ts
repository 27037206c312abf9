/**
 * npm run bench:gpu: value and gradient of the objective on a CUDA device, for N = 4096 × V = 151936 in bfloat16 unless --rows
 * and --vocab say otherwise. Compared with the time for the bytes that must move at the measured bandwidth, with torch eager,
 * with torch.compile and with Liger's Triton grpo_loss.
 * Then the fused head (--head-rows 8192, --channels 2048), compared with its matrix products alone and with Liger's
 * fused-linear GRPO (gpu_peers.py; RAPO_PYTHON names a Python with torch).
 * Results are compared with the CPU's kernels before anything is timed. --json FILE writes all numbers.
 */
import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { createRandom } from '../lib/base/random.js'
import {
  DeviceArray,
  deviceMemory,
  fusedHeadLossOnDevice,
  fusedHeadLossOnDeviceAsync,
  fusedHeadWorkspace,
  policyLossOnDevice,
} from '../lib/loss/cuda.js'
import { kernelsInfo, policyLoss } from '../lib/loss/kernels.js'
import { type Objective, type Penalty, rapo } from '../lib/loss/objective.js'

const { values: flags } = parseArgs({
  options: {
    rows: { type: 'string', default: '4096' },
    vocab: { type: 'string', default: '151936' },
    'head-rows': { type: 'string', default: '8192' },
    channels: { type: 'string', default: '2048' },
    rounds: { type: 'string', default: '20' },
    json: { type: 'string' },
  },
})
const [N, V, rounds] = [Number(flags.rows), Number(flags.vocab), Number(flags.rounds)]
const [headRows, C] = [Number(flags['head-rows']), Number(flags.channels)]

const { cuda } = kernelsInfo()
if (!cuda.available) {
  console.error(`bench:gpu: ${cuda.reason}`)
  process.exit(1)
}

type Measured = Record<string, { ms: number; peakGB: number } | { error: string }>
interface Peers {
  device: string
  torch: string
  copyGBs: number
  gemmTFLOPs: number
  peers: Measured
  head: Measured
}

// In a process of its own, and first, so that its memory is free afterwards.
const script = process.env.RAPO_GPU_PEERS ?? fileURLToPath(new URL('gpu_peers.py', import.meta.url))
const python = process.env.RAPO_PYTHON || 'python3'
const peer = spawnSync(python, [script, ...[N, V, headRows, C].map(String)], {
  encoding: 'utf8',
  stdio: ['ignore', 'pipe', 'inherit'],
})
const peers: Peers | undefined =
  peer.status === 0 ? JSON.parse(peer.stdout.trim().split('\n').at(-1)!) : undefined
if (!peers) console.log(`no peers and no measured bandwidth: ${python} ${script} failed`)

const random = createRandom(1)
const bf16 = (values: Float32Array) =>
  Uint16Array.from(new Uint32Array(values.buffer), b => (b + 0x7fff + ((b >>> 16) & 1)) >>> 16)
const widen = (halves: Uint16Array) => new Float32Array(Uint32Array.from(halves, half => half << 16).buffer)
// One row of noise, shifted from row to row: 4096 different rows would take minutes to make.
const noise = bf16(Float32Array.from({ length: 2 * V }, () => 6 * (random.float() + random.float() - 1)))
const entries = (rows: number) => {
  const fill = (f: (i: number) => number) => Float32Array.from({ length: rows }, (_, i) => f(i))
  return {
    tokenIds: Int32Array.from({ length: rows }, () => random.below(V)),
    tokenWeights: fill(() => 1 / rows),
    advantages: fill(() => 2 * random.float() - 1),
    refWeights: fill(i => (i % 2 ? 1 : 0.7)),
    oldLogprobs: fill(() => -Math.log(V) + random.float()),
  }
}
type Entries = ReturnType<typeof entries>
/** The entries of one row. */
const entriesOf = (all: Entries, i: number) =>
  Object.fromEntries(
    Object.entries(all).map(([name, array]) => [name, array.subarray(i, i + 1)]),
  ) as unknown as Entries
const onDevice = (all: Entries) =>
  Object.fromEntries(
    Object.entries(all).map(([name, array]) => [name, DeviceArray.from(array)]),
  ) as unknown as Record<keyof Entries, DeviceArray>
const logitsRow = (i: number) => noise.subarray((i * 7919) % V, ((i * 7919) % V) + V)
const refRow = (i: number) => noise.subarray((i * 104729) % V, ((i * 104729) % V) + V)
const host = entries(N)
const matrix = (row: (i: number) => Uint16Array) => {
  const array = DeviceArray.allocate('bfloat16', [N, V])
  for (let i = 0; i < N; ++i) array.view(i * V, [V]).upload(row(i))
  return array
}
const logits = matrix(logitsRow)
const refLogits = matrix(refRow)
const grad = DeviceArray.allocate('bfloat16', [N, V])
const arrays = onDevice(host)

interface Result {
  name: string
  ms: number
  /** The bytes that must move, divided by the time. */
  GBs: number
  /** The time for these bytes at the measured bandwidth, divided by the time. */
  ofFloor: number | undefined
}
const results: Result[] = []

function measure(penalty: Penalty): void {
  const objective = rapo({ penalty, klCoef: penalty === 'none' ? 0 : 0.02 })
  const { refWeights, ...rest } = arrays
  const batch = {
    logits,
    ...rest,
    ...(penalty !== 'none' && { refLogits }),
    ...(penalty.startsWith('forward') && { refWeights }),
  }
  const run = () => policyLossOnDevice(batch, objective, { grad })
  run()
  validate(objective)
  const ms = medianOf(run, rounds)
  const bytes = (penalty === 'none' ? 2 : 3) * N * V * 2
  const GBs = bytes / ms / 1e6
  results.push({ name: `rapo ${penalty}`, ms, GBs, ofFloor: peers && GBs / peers.copyGBs })
}

/**
 * Compares the first, a middle and the last row with the CPU's kernels. Allowed: 64 float32 roundings and one bfloat16
 * rounding.
 */
function validate(objective: Objective): void {
  for (const i of [0, N >> 1, N - 1]) {
    const { refWeights, ...entry } = entriesOf(host, i)
    const want = policyLoss(
      {
        vocabSize: V,
        dtype: 'bfloat16',
        logits: logitsRow(i),
        ...entry,
        ...(objective.penalty !== 'none' && { refLogits: refRow(i) }),
        ...(objective.penalty.startsWith('forward') && { refWeights }),
      },
      objective,
      { grad: new Float32Array(V) },
    ).gradLogits
    const wide = widen(grad.view(i * V, [V]).download<Uint16Array>())
    const largest = want.reduce((x, y) => Math.max(x, Math.abs(y)), objective.klCoef / N)
    for (let v = 0; v < V; ++v) {
      const limit = 64 * 2 ** -24 * largest + 2 ** -8 * Math.abs(want[v]!)
      if (!(Math.abs(wide[v]! - want[v]!) <= limit)) {
        throw new Error(
          `${objective.penalty}: gradient [${i}, ${v}] is ${wide[v]}, want ${want[v]}; not timed`,
        )
      }
    }
  }
}

/** The median time of the calls, in milliseconds. */
function medianOf(run: () => void, repeats: number): number {
  const times = Array.from({ length: repeats + 3 }, () => {
    const start = performance.now()
    run()
    return performance.now() - start
  }).slice(3)
  return times.sort((x, y) => x - y)[repeats >> 1]!
}

/** The fused head with the rapo preset: its time, and its memory with inputs and gradients. */
async function measureHead(): Promise<{ ms: number; peakGB: number }> {
  const before = deviceMemory().free
  // The rows are parts of one long noise, each from another offset.
  const long = bf16(Float32Array.from({ length: 2 ** 20 + C }, () => 2 * random.float() - 1))
  const rowOf = (step: number) => (i: number) =>
    long.subarray((i * step) % 2 ** 20, ((i * step) % 2 ** 20) + C)
  const upload = (rows: number, row: (i: number) => Uint16Array) => {
    const array = DeviceArray.allocate('bfloat16', [rows, C])
    const block = new Uint16Array(4096 * C)
    for (let first = 0; first < rows; first += 4096) {
      const count = Math.min(4096, rows - first)
      for (let i = 0; i < count; ++i) block.set(row(first + i), i * C)
      array.view(first * C, [count, C]).upload(block.subarray(0, count * C))
    }
    return array
  }
  const rowsOf = { hidden: rowOf(7919), weight: rowOf(6007), refHidden: rowOf(7907), refWeight: rowOf(5987) }
  const all = entries(headRows)
  const batch = {
    hidden: upload(headRows, rowsOf.hidden),
    weight: upload(V, rowsOf.weight),
    refHidden: upload(headRows, rowsOf.refHidden),
    refWeight: upload(V, rowsOf.refWeight),
    ...onDevice(all),
  }
  const gradHidden = DeviceArray.allocate('bfloat16', [headRows, C])
  const gradWeight = DeviceArray.allocate('float32', [V, C])
  const zeros = new Float32Array(C)
  for (let v = 0; v < V; ++v) gradWeight.view(v * C, [C]).upload(zeros)
  const objective = rapo()
  const bytes = fusedHeadWorkspace(batch, objective, { chunkRows: Math.min(4096, headRows) })
  const workspace = DeviceArray.allocate('uint8', [bytes])
  const options = { gradHidden, gradWeight, workspace }

  let free = before
  let settled = false
  const pending = fusedHeadLossOnDeviceAsync(batch, objective, options).finally(() => {
    settled = true
  })
  while (!settled) {
    free = Math.min(free, deviceMemory().free)
    await new Promise(resolve => setTimeout(resolve, 1))
  }
  await pending

  for (const i of [0, headRows >> 1, headRows - 1]) validateHead(i, all, rowsOf, objective, gradHidden)
  // A check of both gradients and every chunk at once: ⟨gradWeight, weight⟩ = ⟨gradHidden, hidden⟩ = Σ_i g_i · z_i. The
  // elements of gradHidden are bfloat16, each with a relative rounding error of 2^-9.
  let [fromWeight, fromHidden, size] = [0, 0, 0]
  for (let v = 0; v < V; ++v) {
    const row = gradWeight.view(v * C, [C]).download<Float32Array>()
    const weight = widen(rowsOf.weight(v))
    for (let c = 0; c < C; ++c) fromWeight += row[c]! * weight[c]!
  }
  for (let i = 0; i < headRows; ++i) {
    const row = widen(gradHidden.view(i * C, [C]).download<Uint16Array>())
    const hidden = widen(rowsOf.hidden(i))
    for (let c = 0; c < C; ++c) {
      fromHidden += row[c]! * hidden[c]!
      size += Math.abs(row[c]! * hidden[c]!)
    }
  }
  if (!(Math.abs(fromWeight - fromHidden) <= 2 ** -8 * size)) {
    throw new Error(`fused head: the gradients disagree, ${fromWeight} and ${fromHidden}; not timed`)
  }
  const ms = medianOf(() => fusedHeadLossOnDevice(batch, objective, options), 10)
  for (const array of [...Object.values(batch), gradHidden, gradWeight, workspace]) array.dispose()
  return { ms, peakGB: (before - free) / 1e9 }
}

/**
 * Compares a row of gradHidden with the CPU's kernels on float32 logits. Allowed: twice the change that rounding the logits and
 * their gradient to bfloat16 makes in the row, four float32 roundings of the largest sum, and one rounding to bfloat16.
 */
function validateHead(
  i: number,
  all: Entries,
  rowsOf: Record<'hidden' | 'weight' | 'refHidden' | 'refWeight', (i: number) => Uint16Array>,
  objective: Objective,
  gradHidden: DeviceArray,
): void {
  const logits = (hidden: Float32Array, weight: (v: number) => Uint16Array) =>
    Float32Array.from({ length: V }, (_, v) => {
      const row = widen(weight(v))
      let sum = 0
      for (let c = 0; c < C; ++c) sum += hidden[c]! * row[c]!
      return sum
    })
  const z = logits(widen(rowsOf.hidden(i)), rowsOf.weight)
  const u = logits(widen(rowsOf.refHidden(i)), rowsOf.refWeight)
  const gradientOf = (round: (x: Float32Array) => Float32Array) => {
    const batch = { vocabSize: V, logits: round(z), refLogits: round(u), ...entriesOf(all, i) }
    const grad = round(policyLoss(batch, objective).gradLogits as Float32Array)
    const [sum, size] = [new Float64Array(C), new Float64Array(C)]
    for (let v = 0; v < V; ++v) {
      const row = widen(rowsOf.weight(v))
      for (let c = 0; c < C; ++c) {
        sum[c]! += grad[v]! * row[c]!
        size[c]! += Math.abs(grad[v]! * row[c]!)
      }
    }
    return { sum, size }
  }
  const want = gradientOf(x => x)
  const naive = gradientOf(x => widen(bf16(x)))
  const lost = want.sum.reduce((x, w, c) => Math.max(x, Math.abs(naive.sum[c]! - w)), 0)
  const got = widen(gradHidden.view(i * C, [C]).download<Uint16Array>())
  for (let c = 0; c < C; ++c) {
    const limit = 2 * lost + 4 * 2 ** -24 * Math.max(...want.size) + 2 ** -8 * Math.abs(want.sum[c]!)
    if (!(Math.abs(got[c]! - want.sum[c]!) <= limit)) {
      throw new Error(`fused head: gradHidden[${i}, ${c}] is ${got[c]}, want ${want.sum[c]}; not timed`)
    }
  }
}

for (const penalty of ['forward', 'none', 'reverse-k3', 'forward-full', 'reverse-full'] as const)
  measure(penalty)
for (const array of [logits, refLogits, grad]) array.dispose()
const head = await measureHead()

const gb = (x: number | undefined) => (x === undefined ? '-' : x.toFixed(0))
console.log(`\n${peers?.device ?? cuda.devices[0]!.name}; torch ${peers?.torch ?? '-'}`)
console.log(`copy ${gb(peers?.copyGBs)} GB/s, bf16 GEMM ${gb(peers?.gemmTFLOPs)} TFLOP/s`)
console.log(
  `value and gradient, N = ${N}, V = ${V}, bfloat16: medians; rapo's include launching and waiting\n`,
)
console.log(
  `${'what'.padEnd(22)} ${'ms'.padStart(9)} ${'GB/s'.padStart(7)}  of the floor  against rapo forward`,
)
for (const { name, ms, GBs, ofFloor } of results) {
  const share = ofFloor === undefined ? '-' : `${(100 * ofFloor).toFixed(0)} %`
  console.log(
    `${name.padEnd(22)} ${ms.toFixed(3).padStart(9)} ${GBs.toFixed(0).padStart(7)}  ${share.padStart(12)}`,
  )
}
for (const [name, result] of Object.entries(peers?.peers ?? {})) {
  if ('error' in result) console.log(`${name.padEnd(22)} left out: ${result.error}`)
  else {
    const times = `${(result.ms / results[0]!.ms).toFixed(2)}×`
    console.log(
      `${name.padEnd(22)} ${result.ms.toFixed(3).padStart(9)} ${''.padStart(21)}  ${times.padStart(20)}`,
    )
  }
}

console.log(`\nfused head, N = ${headRows}, C = ${C}, V = ${V}, bfloat16; memory with inputs and gradients\n`)
console.log(`${'what'.padEnd(24)} ${'ms'.padStart(9)} ${'GB'.padStart(6)}  against rapo`)
for (const [name, result] of Object.entries({ 'rapo fused head': head, ...peers?.head })) {
  if ('error' in result) console.log(`${name.padEnd(24)} left out: ${result.error}`)
  else {
    const [ms, peakGB] = [result.ms.toFixed(1), result.peakGB.toFixed(1)]
    const times = `${(result.ms / head.ms).toFixed(2)}×`
    console.log(`${name.padEnd(24)} ${ms.padStart(9)} ${peakGB.padStart(6)}  ${times.padStart(12)}`)
  }
}
if (flags.json) {
  const shapes = { rows: N, vocabSize: V, headRows, channels: C }
  writeFileSync(flags.json, `${JSON.stringify({ ...shapes, cuda, peers, results, head }, null, 2)}\n`)
}
