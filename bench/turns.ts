/**
 * `npm run bench:turns`: conversations of several turns, whose earlier turns are kept in the key/value cache
 * (SamplingParams.turn) or computed again. Alternating rounds of a model with random weights; medians and their ratio.
 *
 *   --threads N  --rounds 3  --turns 4  --conversations 32
 *   --prompt-tokens 256  --new-tokens 32  --observation-tokens 16    completions never stop early
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { cpus, tmpdir } from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { packTokens, unpackCompletions } from '../lib/model/batch.js'
import { initializeModel, loadPolicy, setEngineThreads } from '../lib/model/engine.js'

const numbers = {
  ...{ threads: 0, rounds: 3, turns: 4, conversations: 32 },
  ...{ 'prompt-tokens': 256, 'new-tokens': 32, 'observation-tokens': 16 },
}
const options = Object.fromEntries(Object.keys(numbers).map(name => [name, { type: 'string' as const }]))
const { values } = parseArgs({ options })
const given = Object.fromEntries(Object.entries(values).map(([name, text]) => [name, Number(text)]))
const flags = { ...numbers, ...given }
const [promptTokens, newTokens, observed] = [
  flags['prompt-tokens'],
  flags['new-tokens'],
  flags['observation-tokens'],
]

const dir = mkdtempSync(path.join(tmpdir(), 'rapo-bench-'))
process.on('exit', () => rmSync(dir, { recursive: true, force: true }))
const config = {
  ...{ architectures: ['Qwen2ForCausalLM'], model_type: 'qwen2', hidden_act: 'silu', torch_dtype: 'float32' },
  ...{ vocab_size: 4096, hidden_size: 512, intermediate_size: 1536, num_hidden_layers: 6 },
  ...{ num_attention_heads: 8, num_key_value_heads: 2, max_position_embeddings: 4096 },
  ...{ initializer_range: 0.05, tie_word_embeddings: true },
}
writeFileSync(path.join(dir, 'config.json'), JSON.stringify(config))
await initializeModel(dir, 1)
setEngineThreads(flags.threads)
const policy = await loadPolicy(dir, { trainable: false })

/** Seconds of each turn, and the prompt tokens that were computed. */
async function converse(isKept: boolean) {
  let asked = Array.from({ length: flags.conversations }, (_, c) =>
    Array.from({ length: promptTokens }, (_, t) => (c * 7919 + t * 131 + 13) % config.vocab_size),
  )
  const seconds: number[] = []
  let computed = 0
  for (let turn = 1; turn <= flags.turns; turn++) {
    const start = performance.now()
    const completions = await policy.generate(packTokens(asked), {
      ...{ n: 1, maxNewTokens: newTokens, stopTokenIds: [], seed: turn },
      ...(isKept && { turn }),
    })
    seconds.push((performance.now() - start) / 1000)
    computed += asked.reduce((sum, { length }) => sum + length, 0) - (completions.cachedTokens ?? 0)
    asked = unpackCompletions(completions).map(({ tokenIds }, c) => [
      ...asked[c]!,
      ...tokenIds,
      ...Array.from({ length: observed }, (_, t) => (t * 31 + turn) % config.vocab_size),
    ])
  }
  return { seconds, computed }
}

const rounds: { kept: Awaited<ReturnType<typeof converse>>; again: Awaited<ReturnType<typeof converse>> }[] =
  []
for (let round = 0; round < flags.rounds; round++) {
  rounds.push({ again: await converse(false), kept: await converse(true) })
}
const median = (list: readonly number[]) => list.toSorted((a, b) => a - b)[Math.floor(list.length / 2)]!
const later = ({ seconds }: { seconds: readonly number[] }) => seconds.slice(1).reduce((a, b) => a + b, 0)
const row = (name: string, kept: number, again: number, digits: number) =>
  `${name.padEnd(34)}${kept.toFixed(digits).padStart(10)}${again.toFixed(digits).padStart(12)}${(again / kept).toFixed(2).padStart(8)}`
console.log(
  `${cpus()[0]!.model}, ${policy.info.parameters} parameters, ${flags.conversations} conversations, ${flags.turns} turns, prompts of ${promptTokens}, completions of ${newTokens}, observations of ${observed} tokens`,
)
console.log(`${''.padEnd(34)}${'kept'.padStart(10)}${'computed'.padStart(12)}${'ratio'.padStart(8)}`)
const of = (read: (round: Awaited<ReturnType<typeof converse>>) => number) =>
  [median(rounds.map(({ kept }) => read(kept))), median(rounds.map(({ again }) => read(again)))] as const
console.log(row('prompt tokens computed', ...of(({ computed }) => computed), 0))
console.log(row('seconds, first turn', ...of(({ seconds }) => seconds[0]!), 2))
console.log(row('seconds, later turns', ...of(later), 2))
await policy.dispose()
