/**
 * `npm run bench:lora`: a step with an adapter against a step of full fine-tuning, at Qwen2.5-0.5B's shapes with random
 * weights: the same prompts, completions and objective, in turns, in one process.
 *
 *   generate     sequences / group prompts, `group` completions of --new-tokens tokens each
 *   accumulate   reference forward, policy forward and backward on --sequences sequences of --length tokens
 *   step         clipping and AdamW
 *
 *   --dtype bfloat16  --layers 24  --rank 16  --sequences 16  --group 8  --length 160  --new-tokens 32  --rounds 5
 *
 * A ratio is the median over rounds of the full step's time divided by the adapter's in the same round.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { cpus, tmpdir } from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { rapo } from '../lib/loss/objective.js'
import { packBatch, packTokens, toSequence } from '../lib/model/batch.js'
import { initializeModel, loadPolicy } from '../lib/model/engine.js'
import type { MicroBatch, ModelDType, Policy } from '../lib/model/policy.js'

const { values: flags } = parseArgs({
  options: {
    dtype: { type: 'string', default: 'bfloat16' },
    layers: { type: 'string', default: '24' },
    rank: { type: 'string', default: '16' },
    sequences: { type: 'string', default: '16' },
    group: { type: 'string', default: '8' },
    length: { type: 'string', default: '160' },
    'new-tokens': { type: 'string', default: '32' },
    rounds: { type: 'string', default: '5' },
  },
})
const [layers, r, sequences, group, length, newTokens, rounds] = [
  ...[
    flags.layers,
    flags.rank,
    flags.sequences,
    flags.group,
    flags.length,
    flags['new-tokens'],
    flags.rounds,
  ],
].map(Number) as [number, number, number, number, number, number, number]
const dtype = flags.dtype as ModelDType

const dir = mkdtempSync(path.join(tmpdir(), 'rapo-bench-lora-'))
process.on('exit', () => rmSync(dir, { recursive: true, force: true }))
writeFileSync(
  path.join(dir, 'config.json'),
  JSON.stringify({
    ...{ architectures: ['Qwen2ForCausalLM'], model_type: 'qwen2', hidden_act: 'silu', vocab_size: 151936 },
    ...{ hidden_size: 896, intermediate_size: 4864, num_hidden_layers: layers, num_attention_heads: 14 },
    ...{ num_key_value_heads: 2, max_position_embeddings: 32768, rope_theta: 1e6, rms_norm_eps: 1e-6 },
    ...{ tie_word_embeddings: true, initializer_range: 0.02, torch_dtype: dtype },
  }),
)
await initializeModel(dir, 1)

const prompt = Math.floor(length / 2)
const idOf = (i: number, t: number) => (i * 7919 + t * 104729) % 151936
const promptOf = (i: number) => Array.from({ length: prompt }, (_, t) => idOf(Math.floor(i / group), t))
const items = Array.from({ length: sequences }, (_, i) => {
  const completion = Array.from({ length: length - prompt }, (_, t) => idOf(i + 1000, t))
  return toSequence(promptOf(i), completion, { advantage: i % 2 === 0 ? 1 : -1, refWeight: 1 })
})
const weight = 1 / (sequences * (length - prompt))
const batch: MicroBatch = packBatch(
  items,
  items.map(() => weight),
)
const prompts = packTokens(
  Array.from({ length: Math.ceil(sequences / group) }, (_, g) => promptOf(g * group)),
)

const parts = ['generate', 'accumulate', 'step'] as const
type Seconds = Record<(typeof parts)[number], number>

async function stepOf(policy: Policy): Promise<Seconds> {
  const timed = async (work: Promise<unknown>) => {
    const start = performance.now()
    await work
    return (performance.now() - start) / 1000
  }
  const sampling = { n: group, maxNewTokens: newTokens, temperature: 1, stopTokenIds: [], seed: 1 }
  return {
    generate: await timed(policy.generate(prompts, sampling)),
    accumulate: await timed(policy.accumulate(batch, rapo())),
    step: await timed(policy.step(1e-5)),
  }
}

const load = (more: object) => loadPolicy(dir, { dtype, referenceDir: dir, ...more })
const full = await load({})
const adapter = await load({ lora: { r, loraAlpha: r } })
console.log(
  `${cpus().length} × ${cpus()[0]?.model.trim()}; ${dtype}, ${layers} layers, rank ${r}, ${sequences} × ${length} tokens in groups of ${group}; trained: ${full.info.parameters} parameters, with the adapter ${adapter.info.adapterParameters}`,
)
const found: { full: Seconds; adapter: Seconds }[] = []
for (let round = -1; round < rounds; round++) {
  const measured = { full: await stepOf(full), adapter: await stepOf(adapter) }
  if (round >= 0) found.push(measured) // the first round fills caches
}
const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)]!
const sum = (seconds: Seconds) => parts.reduce((total, part) => total + seconds[part], 0)
const training = (seconds: Seconds) => seconds.accumulate + seconds.step
const rows: [string, (seconds: Seconds) => number][] = [
  ...parts.map(part => [part, (seconds: Seconds) => seconds[part]] as [string, (seconds: Seconds) => number]),
  ['accumulate + step', training],
  ['all', sum],
]
console.log(`${'seconds'.padEnd(20)}${'full'.padStart(9)}${'adapter'.padStart(9)}${'ratio'.padStart(9)}`)
for (const [label, of] of rows) {
  const columns = [
    median(found.map(({ full }) => of(full))).toFixed(2),
    median(found.map(({ adapter }) => of(adapter))).toFixed(2),
    median(found.map(({ full, adapter }) => of(full) / of(adapter))).toFixed(2),
  ]
  console.log(label.padEnd(20) + columns.map(text => text.padStart(9)).join(''))
}
await Promise.all([full.dispose(), adapter.dispose()])
