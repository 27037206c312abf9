/**
 * npm run bench:gpu: value and gradient of the objective on a CUDA device, N = 4096 × V = 151936 in bfloat16 unless
 * --rows and --vocab say otherwise, against the bytes that must move at the measured bandwidth, torch eager,
 * torch.compile and Liger's Triton grpo_loss (gpu_peers.py; RAPO_PYTHON names the Python with torch). Results are
 * checked against the CPU's kernels before anything is timed. --json FILE writes all numbers.
 */
import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { DeviceArray, policyLossOnDevice } from '../lib/device.js'
import { kernelsInfo, policyLoss } from '../lib/kernels.js'
import { type Objective, type Penalty, rapo } from '../lib/objective.js'
import { createRandom } from '../lib/random.js'

const { values: flags } = parseArgs({
  options: {
    rows: { type: 'string', default: '4096' },
    vocab: { type: 'string', default: '151936' },
    rounds: { type: 'string', default: '20' },
    json: { type: 'string' },
  },
})
const [N, V, rounds] = [Number(flags.rows), Number(flags.vocab), Number(flags.rounds)]

const { cuda } = kernelsInfo()
if (!cuda.available) {
  console.error(`bench:gpu: ${cuda.reason}`)
  process.exit(1)
}

interface Peers {
  device: string
  torch: string
  copyGBs: number
  gemmTFLOPs: number
  peers: Record<string, { ms: number; peakGB: number } | { error: string }>
}

// In a process of its own and first, so that its memory is free again.
const script = process.env.RAPO_GPU_PEERS ?? fileURLToPath(new URL('gpu_peers.py', import.meta.url))
const python = process.env.RAPO_PYTHON || 'python3'
const peer = spawnSync(python, [script, String(N), String(V)], {
  encoding: 'utf8',
  stdio: ['ignore', 'pipe', 'inherit'],
})
const peers: Peers | undefined =
  peer.status === 0 ? JSON.parse(peer.stdout.trim().split('\n').at(-1)!) : undefined
if (!peers) console.log(`no peers and no measured bandwidth: ${python} ${script} failed`)

const random = createRandom(1)
const bf16 = (values: Float32Array) =>
  Uint16Array.from(new Uint32Array(values.buffer), b => (b + 0x7fff + ((b >>> 16) & 1)) >>> 16)
// A row of noise that is shifted from row to row: 4096 rows of their own would take minutes to make.
const noise = bf16(Float32Array.from({ length: 2 * V }, () => 6 * (random.float() + random.float() - 1)))
const fill = (f: (i: number) => number) => Float32Array.from({ length: N }, (_, i) => f(i))
const logitsRow = (i: number) => noise.subarray((i * 7919) % V, ((i * 7919) % V) + V)
const refRow = (i: number) => noise.subarray((i * 104729) % V, ((i * 104729) % V) + V)
const host = {
  tokenIds: Int32Array.from({ length: N }, () => random.below(V)),
  tokenWeights: fill(() => 1 / N),
  advantages: fill(() => 2 * random.float() - 1),
  refWeights: fill(i => (i % 2 ? 1 : 0.7)),
  oldLogprobs: fill(() => -Math.log(V) + random.float()),
}
const matrix = (row: (i: number) => Uint16Array) => {
  const array = DeviceArray.allocate('bfloat16', [N, V])
  for (let i = 0; i < N; ++i) array.view(i * V, [V]).upload(row(i))
  return array
}
const logits = matrix(logitsRow)
const refLogits = matrix(refRow)
const grad = DeviceArray.allocate('bfloat16', [N, V])
const arrays = Object.fromEntries(
  Object.entries(host).map(([name, array]) => [name, DeviceArray.from(array)]),
) as Record<keyof typeof host, DeviceArray>

interface Result {
  name: string
  ms: number
  /** Bytes that must move at least, over the time. */
  GBs: number
  /** The time that those bytes take at the measured bandwidth, over the time. */
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
  const times = Array.from({ length: rounds + 3 }, () => {
    const start = performance.now()
    run()
    return performance.now() - start
  }).slice(3)
  const ms = times.sort((x, y) => x - y)[rounds >> 1]!
  const bytes = (penalty === 'none' ? 2 : 3) * N * V * 2
  const GBs = bytes / ms / 1e6
  results.push({ name: `rapo ${penalty}`, ms, GBs, ofFloor: peers && GBs / peers.copyGBs })
}

/** The first, a middle and the last row against the CPU's kernels: 64 float32 roundings, and one of bfloat16. */
function validate(objective: Objective): void {
  for (const i of [0, N >> 1, N - 1]) {
    const one = <T extends Float32Array | Int32Array>(array: T) => array.subarray(i, i + 1) as T
    const want = policyLoss(
      {
        vocabSize: V,
        dtype: 'bfloat16',
        logits: logitsRow(i),
        tokenIds: one(host.tokenIds),
        tokenWeights: one(host.tokenWeights),
        advantages: one(host.advantages),
        oldLogprobs: one(host.oldLogprobs),
        ...(objective.penalty !== 'none' && { refLogits: refRow(i) }),
        ...(objective.penalty.startsWith('forward') && { refWeights: one(host.refWeights) }),
      },
      objective,
      { grad: new Float32Array(V) },
    ).gradLogits
    const got = grad.view(i * V, [V]).download<Uint16Array>()
    const wide = new Float32Array(Uint32Array.from(got, half => half << 16).buffer)
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

for (const penalty of ['forward', 'none', 'reverse-k3', 'forward-full', 'reverse-full'] as const)
  measure(penalty)

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
if (flags.json) {
  writeFileSync(flags.json, `${JSON.stringify({ rows: N, vocabSize: V, cuda, peers, results }, null, 2)}\n`)
}
