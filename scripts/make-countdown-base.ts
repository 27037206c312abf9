/**
 * Makes models/countdown-base: npx tsx scripts/make-countdown-base.ts
 *
 * A small Qwen2 that learns countdown's format from solved problems with this package's own engine: supervised training is the
 * objective with advantage 1 and no penalty. At first all examples are solved problems, so that the model learns what ×, ÷ and
 * brackets do. In the last steps hard problems are mostly answered by a plain sum that misses the target, so that the model
 * hardly ever uses ×, ÷ and brackets, and training has something to discover. The test problems are left out.
 */
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { parseJsonLines, readInput } from '../lib/base/jsonl.js'
import { createRandom, deriveSeed } from '../lib/base/random.js'
import { createProgress } from '../lib/cli/progress.js'
import { addMetrics, drGrpo, emptyMetrics } from '../lib/loss/objective.js'
import { splitBatch, type TrainSequence, tokenWeights, toSequence } from '../lib/model/batch.js'
import { initializeModel, loadPolicy, setEngineThreads } from '../lib/model/engine.js'
import { loadTokenizer } from '../lib/model/tokenizer.js'
import { listProblems, promptOf, type Solution, solve } from './countdown-solver.js'
import { eosId, padId, vocabSize, writeTokenizer } from './countdown-tokenizer.js'

const { values } = parseArgs({
  options: {
    output: { type: 'string', default: 'models/countdown-base' },
    test: { type: 'string', default: 'data/countdown/test.jsonl' },
    seed: { type: 'string', default: '1' },
    steps: { type: 'string', default: '1500' },
    batch: { type: 'string', default: '128' },
    'learning-rate': { type: 'string', default: '0.002' },
    /** Share of the examples that are hard problems. */
    hard: { type: 'string', default: '0.5' },
    /**
     * Share of the hard problems that are still solved in the last steps. The others are answered by a plain sum that misses.
     */
    'last-solved': { type: 'string', default: '0.02' },
    'last-steps': { type: 'string', default: '300' },
    'max-number': { type: 'string', default: '15' },
    hidden: { type: 'string', default: '64' },
    intermediate: { type: 'string', default: '192' },
    layers: { type: 'string', default: '4' },
    heads: { type: 'string', default: '4' },
    'kv-heads': { type: 'string', default: '2' },
    threads: { type: 'string', default: '1' },
  },
})
const number = (name: keyof typeof values) => {
  const value = Number(values[name])
  if (!Number.isFinite(value)) throw new Error(`--${name} must be a number, not ${values[name]}`)
  return value
}
const seed = number('seed')
const steps = number('steps')
const batchSize = number('batch')
const peakRate = number('learning-rate')

const work = mkdtempSync(path.join(tmpdir(), 'countdown-base-'))
writeFileSync(path.join(work, 'config.json'), `${JSON.stringify(modelConfig(), null, 2)}\n`)
writeTokenizer(work)
await setEngineThreads(number('threads'))
await initializeModel(work, seed)
const policy = await loadPolicy(work, { adamw: { weightDecay: 0.01 } })
console.log(`${policy.info.parameters} parameters`)

const tokenizer = loadTokenizer(work)
const random = createRandom(deriveSeed(seed, 'examples'))
const held = new Set(parseJsonLines(readInput(values.test), values.test).map(({ value }) => value.prompt))
const problems = listProblems(number('max-number')).filter(problem => !held.has(promptOf(problem)))
const easy = problems.filter(problem => problem.difficulty === 'easy')
const hard = problems.filter(problem => problem.difficulty === 'hard')

function makeExample(solvedFraction: number): TrainSequence {
  const isHard = random.float() < number('hard')
  const problem = random.pick(isHard ? hard : easy)
  const isSolved = !isHard || random.float() < solvedFraction
  const answers = isSolved
    ? problem.solutions.filter(solution => solution.isPlain !== isHard)
    : plainExpressions(problem.numbers)
  const completionIds = [...tokenizer.encode(random.pick(answers).text), eosId]
  return toSequence(tokenizer.encode(promptOf(problem)), completionIds, { advantage: 1 })
}

/** Every way to add and subtract the numbers, whatever the value. */
function plainExpressions(numbers: readonly number[]): Solution[] {
  return [...solve(numbers).values()].flat().filter(solution => solution.isPlain)
}

// Without penalty and entropy, with advantage 1 and ratio 1, the gradient is that of the cross-entropy.
const supervised = drGrpo()
const progress = createProgress({ label: 'countdown-base', total: steps, unit: 'steps' })
for (let step = 1; step <= steps; step++) {
  const solvedFraction = step > steps - number('last-steps') ? number('last-solved') : 1
  const sequences = Array.from({ length: batchSize }, () => makeExample(solvedFraction))
  const weights = tokenWeights(sequences, 'token-mean', 0)
  let sums = emptyMetrics
  for (const microBatch of splitBatch(sequences, weights, 16384)) {
    sums = addMetrics(sums, await policy.accumulate(microBatch, supervised))
  }
  const warmup = Math.min(1, step / 100)
  await policy.step(peakRate * warmup * (0.05 + 0.475 * (1 + Math.cos((Math.PI * step) / steps))))
  progress.update(step, { entropy: sums.entropySum / sums.tokens })
}
progress.stop()

await policy.save(work)
await policy.dispose()
mkdirSync(values.output, { recursive: true })
cpSync(work, values.output, { recursive: true })
rmSync(work, { recursive: true })
console.log(`wrote ${values.output}`)

function modelConfig() {
  return {
    architectures: ['Qwen2ForCausalLM'],
    model_type: 'qwen2',
    vocab_size: vocabSize,
    hidden_size: number('hidden'),
    intermediate_size: number('intermediate'),
    num_hidden_layers: number('layers'),
    num_attention_heads: number('heads'),
    num_key_value_heads: number('kv-heads'),
    max_position_embeddings: 64,
    rms_norm_eps: 1e-6,
    rope_theta: 10000,
    hidden_act: 'silu',
    tie_word_embeddings: true,
    use_sliding_window: false,
    attention_dropout: 0,
    initializer_range: 0.02,
    torch_dtype: 'float32',
    eos_token_id: eosId,
    pad_token_id: padId,
    use_cache: true,
  }
}
