/**
 * npm run bench:gpu, the engine's part: generation and training at Qwen2.5's shapes with random weights, on a CUDA
 * device, against the device's measured bandwidth and bfloat16 GEMM rate and against transformers and torch
 * (gpu_engine_peers.py; RAPO_PYTHON names their Python). RAPO_ENGINE_ADDON names an engine built against a libtorch
 * with CUDA. Recorded log-probs are compared with the trainer's forward pass before anything is timed.
 *
 *   --sizes 0.5B,1.5B,3B   --batch 256   --prompt 384   --new 256   generation
 *   --sequences 32   --length 512                                   training: prompts of a quarter of the length
 *   --device cuda   --dtype bfloat16   --layers N (fewer, for a trial)   --json FILE
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { rapo } from '../lib/loss/objective.js'
import { initializeModel, loadPolicy } from '../lib/model/engine.js'
import type { Device, ModelDType, Policy } from '../lib/model/policy.js'

const { values: flags } = parseArgs({
  options: {
    sizes: { type: 'string', default: '0.5B,1.5B,3B' },
    batch: { type: 'string', default: '256' },
    prompt: { type: 'string', default: '384' },
    new: { type: 'string', default: '256' },
    sequences: { type: 'string', default: '32' },
    length: { type: 'string', default: '512' },
    device: { type: 'string', default: 'cuda' },
    dtype: { type: 'string', default: 'bfloat16' },
    layers: { type: 'string' },
    json: { type: 'string' },
  },
})
const [batch, promptTokens, newTokens] = [Number(flags.batch), Number(flags.prompt), Number(flags.new)]
const [sequences, length] = [Number(flags.sequences), Number(flags.length)]

/** Layers, hidden, intermediate, heads, key/value heads; head width 64 or 128, vocabulary 151936, tied embeddings. */
const shapes: Record<string, readonly [number, number, number, number, number]> = {
  '0.5B': [24, 896, 4864, 14, 2],
  '1.5B': [28, 1536, 8960, 12, 2],
  '3B': [36, 2048, 11008, 16, 2],
}
const vocabSize = 151936

interface Peer {
  copyGBs: number
  gemmTFLOPs: number
  device: string
  generate: { seconds: number; tokens: number } | { error: string }
  train: { seconds: number; tokens: number } | { error: string }
}

interface Row {
  size: string
  decodeTokensPerSecond: number
  /** The time for a decoding step's bytes at the measured bandwidth, divided by the step's time. */
  ofRoofline: number | undefined
  trainTokensPerSecond: number
  /**
   * 6 × parameters × tokens per second, divided by the measured GEMM rate. The time includes the reference's forward pass; the
   * 6 does not.
   */
  utilisation: number | undefined
  peer: Peer | undefined
}

const random = (i: number) => (Math.imul(i, 2654435761) >>> 0) % (vocabSize - 1)
const offsets = (count: number, each: number) => Int32Array.from({ length: count + 1 }, (_, i) => i * each)

async function timed(body: () => Promise<unknown>): Promise<number> {
  const start = performance.now()
  await body()
  return (performance.now() - start) / 1000
}

/** Seconds to generate `count` tokens for each sequence of the batch. */
async function generate(policy: Policy, count: number): Promise<number> {
  const prompts = {
    tokenIds: Int32Array.from({ length: batch * promptTokens }, (_, i) => random(i)),
    offsets: offsets(batch, promptTokens),
  }
  const sampling = { n: 1, maxNewTokens: count, temperature: 1, topP: 1, topK: 0, minP: 0, stopTokenIds: [] }
  return timed(() => policy.generate(prompts, { ...sampling, seed: 1, maxBatch: batch }))
}

async function validate(policy: Policy): Promise<void> {
  const prompt = Int32Array.from({ length: 40 }, (_, i) => random(i))
  const made = await policy.generate(
    { tokenIds: prompt, offsets: Int32Array.of(0, 40) },
    { n: 1, maxNewTokens: 30, temperature: 1, topP: 1, topK: 0, minP: 0, stopTokenIds: [], seed: 1 },
  )
  const { tokenIds } = made.tokens
  const all = { tokenIds: Int32Array.of(...prompt, ...tokenIds), offsets: Int32Array.of(0, 70) }
  const rowPositions = Int32Array.from(tokenIds, (_, i) => 39 + i)
  const { logprobs } = await policy.logprobs(all, { rowPositions, tokenIds }, 1)
  const off = logprobs.reduce((most, l, i) => Math.max(most, Math.abs(l - made.logprobs[i]!)), 0)
  // bfloat16 logits of size 4 have steps of 1/64, and a few dozen layers round on the way to them.
  if (!(off < 0.2)) throw new Error(`log-probs of generation and training differ by ${off}; not timed`)
}

/** Seconds of accumulate() and step() on a batch, after a first call that allocates memory. */
async function train(policy: Policy): Promise<number> {
  const prompt = length >> 2
  const rows = sequences * (length - prompt)
  const tokenIds = Int32Array.from({ length: sequences * length }, (_, i) => random(i))
  const rowPositions = Int32Array.from(
    { length: rows },
    (_, i) => Math.floor(i / (length - prompt)) * length + prompt - 1 + (i % (length - prompt)),
  )
  const micro = {
    sequences: { tokenIds, offsets: offsets(sequences, length) },
    rowPositions,
    tokenIds: rowPositions.map(p => tokenIds[p + 1]!),
    tokenWeights: new Float32Array(rows).fill(1 / rows),
    advantages: Float32Array.from({ length: rows }, (_, i) => Math.sin(i)),
    refWeights: new Float32Array(rows).fill(0.7),
  }
  const step = async () => {
    await policy.accumulate(micro, rapo())
    await policy.step(1e-6)
  }
  await step()
  return timed(step)
}

const results: Row[] = []
for (const size of flags.sizes.split(',')) {
  const [layers, hidden, intermediate, heads, kvHeads] =
    shapes[size] ?? fail(`no size ${size}; there are ${Object.keys(shapes).join(', ')}`)
  const dir = mkdtempSync(path.join(tmpdir(), 'rapo-bench-engine-'))
  try {
    const config = {
      architectures: ['Qwen2ForCausalLM'],
      model_type: 'qwen2',
      hidden_act: 'silu',
      vocab_size: vocabSize,
      hidden_size: hidden,
      intermediate_size: intermediate,
      num_hidden_layers: Number(flags.layers ?? layers),
      num_attention_heads: heads,
      num_key_value_heads: kvHeads,
      max_position_embeddings: 32768,
      initializer_range: 0.02,
      rms_norm_eps: 1e-6,
      rope_theta: 1e6,
      tie_word_embeddings: true,
      torch_dtype: 'bfloat16',
    }
    writeFileSync(path.join(dir, 'config.json'), JSON.stringify(config))
    await initializeModel(dir, 1)
    const peer = runPeer(dir)
    const policy = await loadPolicy(dir, {
      device: flags.device as Device,
      dtype: flags.dtype as ModelDType,
      referenceDir: dir,
      // At 3B, the activations of a chunk would take most of the memory without this.
      recompute: size === '3B',
    })
    await validate(policy)
    await generate(policy, newTokens)
    const prefill = await generate(policy, 1)
    const decode = (await generate(policy, newTokens)) - prefill
    const seconds = await train(policy)
    const { parameters, headDim } = policy.info
    await policy.dispose()

    const position = 2 * config.num_hidden_layers * kvHeads * headDim * 2
    const bytes = 2 * parameters + batch * (promptTokens + newTokens / 2) * position
    const tokens = sequences * length
    results.push({
      size,
      decodeTokensPerSecond: (batch * (newTokens - 1)) / decode,
      ofRoofline: peer && ((newTokens - 1) * bytes) / peer.copyGBs / 1e9 / decode,
      trainTokensPerSecond: tokens / seconds,
      utilisation: peer && (6 * parameters * tokens) / seconds / peer.gemmTFLOPs / 1e12,
      peer,
    })
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
}

/** In a process of its own, before the policy is loaded, so that its memory is free afterwards. */
function runPeer(dir: string): Peer | undefined {
  const script =
    process.env.RAPO_GPU_ENGINE_PEERS ?? fileURLToPath(new URL('gpu_engine_peers.py', import.meta.url))
  const python = process.env.RAPO_PYTHON || 'python3'
  const args = [script, dir, flags.device, ...[batch, promptTokens, newTokens, sequences, length].map(String)]
  const run = spawnSync(python, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] })
  if (run.status === 0) return JSON.parse(run.stdout.trim().split('\n').at(-1)!)
  console.log(`no peers and no measured rates: ${python} ${script} failed`)
  return undefined
}

function fail(message: string): never {
  console.error(`bench:gpu: ${message}`)
  process.exit(1)
}

const share = (x: number | undefined) => (x === undefined ? '-' : `${(100 * x).toFixed(0)} %`)
const rate = (x: number) => x.toFixed(0).padStart(12)
const theirs = (x: { seconds: number; tokens: number } | { error: string } | undefined) =>
  x === undefined ? '-'.padStart(12) : 'error' in x ? 'failed'.padStart(12) : rate(x.tokens / x.seconds)
console.log(
  `\nthe engine, ${flags.dtype} on ${results[0]?.peer?.device ?? flags.device}: tokens a second\n` +
    `generation: ${batch} sequences of ${promptTokens} + ${newTokens}; training: ${sequences} of ${length}, reference and step included\n`,
)
console.log(
  'size       generation  of roofline  transformers      training  of GEMM rate  transformers, torch',
)
for (const r of results) {
  console.log(
    `${r.size.padEnd(9)}${rate(r.decodeTokensPerSecond)} ${share(r.ofRoofline).padStart(12)}  ${theirs(r.peer?.generate)}` +
      `  ${rate(r.trainTokensPerSecond)} ${share(r.utilisation).padStart(13)}  ${theirs(r.peer?.train)}`,
  )
  for (const [what, result] of Object.entries(r.peer ?? {})) {
    if (typeof result === 'object' && 'error' in result)
      console.log(`  ${what} of transformers: ${result.error}`)
  }
}
if (flags.json) writeFileSync(flags.json, `${JSON.stringify({ flags, results }, null, 2)}\n`)
