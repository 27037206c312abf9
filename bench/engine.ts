/**
 * `npm run bench:engine`: one reinforcement-learning step of the engine, part by part: generate, accumulate (policy and
 * reference), step. Medians over rounds.
 *
 *   --model models/countdown-base  --dtype float32|bfloat16  --threads N  --rounds 20  --max-batch N
 *   --prompts 16  --samples 16  --prompt-tokens 12  --new-tokens 20   sizes; completions never stop early
 *
 * Before anything is timed, log-probs recorded in generation are compared with those of the trainer's forward pass.
 */
import { cpus } from 'node:os'
import { parseArgs } from 'node:util'
import { rapo } from '../lib/loss/objective.js'
import { libtorchVersion, loadPolicy, setEngineThreads } from '../lib/model/engine.js'
import type { Completions, MicroBatch, ModelDType, PackedTokens } from '../lib/model/policy.js'

const { values: flags } = parseArgs({
  options: {
    model: { type: 'string', default: 'models/countdown-base' },
    dtype: { type: 'string', default: 'float32' },
    threads: { type: 'string', default: '0' },
    rounds: { type: 'string', default: '20' },
    'max-batch': { type: 'string', default: '0' },
    prompts: { type: 'string', default: '16' },
    samples: { type: 'string', default: '16' },
    'prompt-tokens': { type: 'string', default: '12' },
    'new-tokens': { type: 'string', default: '20' },
  },
})
const [promptCount, samples, promptTokens, newTokens] = [
  Number(flags.prompts),
  Number(flags.samples),
  Number(flags['prompt-tokens']),
  Number(flags['new-tokens']),
] as const

setEngineThreads(Number(flags.threads))
const policy = await loadPolicy(flags.model, { referenceDir: flags.model, dtype: flags.dtype as ModelDType })
const { info } = policy

const offsets = (count: number, length: number) =>
  Int32Array.from({ length: count + 1 }, (_, i) => i * length)
const prompts: PackedTokens = {
  tokenIds: Int32Array.from(
    { length: promptCount * promptTokens },
    (_, i) => (i * 7919 + 13) % info.vocabSize,
  ),
  offsets: offsets(promptCount, promptTokens),
}
const sampling = {
  n: samples,
  maxNewTokens: newTokens,
  temperature: 1,
  topP: 1,
  topK: 0,
  minP: 0,
  stopTokenIds: [],
  maxBatch: Number(flags['max-batch']),
}

/** Every completion has newTokens tokens, so that all arrays are rectangular. */
function batchOf(made: Completions): MicroBatch {
  const count = promptCount * samples
  const length = promptTokens + newTokens
  const tokenIds = new Int32Array(count * length)
  const rowPositions = new Int32Array(count * newTokens)
  for (let i = 0; i < count; i++) {
    const prompt = Math.floor(i / samples) * promptTokens
    tokenIds.set(prompts.tokenIds.subarray(prompt, prompt + promptTokens), i * length)
    tokenIds.set(made.tokens.tokenIds.subarray(i * newTokens, (i + 1) * newTokens), i * length + promptTokens)
    for (let t = 0; t < newTokens; t++) rowPositions[i * newTokens + t] = i * length + promptTokens + t - 1
  }
  const rows = rowPositions.length
  return {
    sequences: { tokenIds, offsets: offsets(count, length) },
    rowPositions,
    tokenIds: made.tokens.tokenIds,
    tokenWeights: new Float32Array(rows).fill(1 / rows),
    advantages: Float32Array.from({ length: rows }, (_, i) => Math.sin(i)),
    refWeights: new Float32Array(rows).fill(0.7),
    oldLogprobs: made.logprobs,
  }
}

const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)]!
const seconds: Record<'generate' | 'accumulate' | 'step' | 'all', number[]> = {
  generate: [],
  accumulate: [],
  step: [],
  all: [],
}
const objective = rapo()
for (let round = -1; round < Number(flags.rounds); round++) {
  const start = performance.now()
  const made = await policy.generate(prompts, { ...sampling, seed: round + 1 })
  const generated = performance.now()
  const batch = batchOf(made)
  if (round < 0) {
    const { logprobs } = await policy.logprobs(batch.sequences, batch, 1)
    const worst = Math.max(...logprobs.map((l, i) => Math.abs(l - made.logprobs[i]!)))
    // The rounding errors of the element type for logits of some tens.
    if (!(worst < (info.dtype === 'float32' ? 1e-3 : 1))) throw new Error(`log-probs differ by ${worst}`)
  }
  const packed = performance.now()
  await policy.accumulate(batch, objective)
  const accumulated = performance.now()
  await policy.step(1e-6)
  const stepped = performance.now()
  if (round < 0) continue
  seconds.generate.push((generated - start) / 1000)
  seconds.accumulate.push((accumulated - packed) / 1000)
  seconds.step.push((stepped - accumulated) / 1000)
  seconds.all.push((generated - start + stepped - packed) / 1000)
}
await policy.dispose()

const sequences = promptCount * samples
const perSecond = (tokens: number, name: keyof typeof seconds) => Math.round(tokens / median(seconds[name]))
const ms = (name: keyof typeof seconds) =>
  `${(1000 * median(seconds[name])).toFixed(1)} ms (best ${(1000 * Math.min(...seconds[name])).toFixed(1)})`
console.log(
  `${flags.model}: ${info.parameters} parameters, ${info.dtype}, threads ${flags.threads || 'default'}; ` +
    `${sequences} × (${promptTokens} + ${newTokens}) tokens; ${cpus()[0]?.model}, libtorch ${libtorchVersion()}`,
)
console.log(`generate    ${ms('generate')}  ${perSecond(sequences * newTokens, 'generate')} new tokens/s`)
console.log(
  `accumulate  ${ms('accumulate')}  ${perSecond(sequences * (promptTokens + newTokens), 'accumulate')} tokens/s, prompts counted once a completion`,
)
console.log(`step        ${ms('step')}`)
console.log(`all         ${ms('all')}`)
