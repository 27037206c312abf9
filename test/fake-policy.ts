/**
 * A Policy without the engine, for tests of the trainer: a real if tiny model, whose next token does not depend on those
 * before it (softmax of one bias a token), trained by its exact policy gradient and SGD with momentum.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { packTokens } from '../lib/batch.js'
import { emptyMetrics } from '../lib/metrics.js'
import type { FinishReason, LoadPolicy, Policy } from '../lib/policy.js'
import { createRandom, deriveSeed } from '../lib/random.js'
import { vocabSize, writeTokenizer } from '../scripts/countdown-tokenizer.js'

/** A directory that is removed when the process ends. */
export function makeTempDir(): string {
  const dir = mkdtempSync(path.join(tmpdir(), 'rapo-test-'))
  process.on('exit', () => rmSync(dir, { recursive: true, force: true }))
  return dir
}

/** A model directory for loadFakePolicy: the countdown tokenizer, no weights. */
export function makeFakeModel(): string {
  const dir = makeTempDir()
  writeTokenizer(dir)
  return dir
}

/** The first id whose cumulated probability exceeds u. */
function draw(p: Float64Array, u: number): number {
  let cumulated = 0
  for (const [id, mass] of p.entries()) {
    cumulated += mass
    if (u < cumulated) return id
  }
  return p.length - 1
}

export const loadFakePolicy: LoadPolicy = async dir => {
  const weightsFile = path.join(dir, 'weights.json')
  const read = (file: string) => Float64Array.from(JSON.parse(readFileSync(file, 'utf8')))
  const biases = existsSync(weightsFile) ? read(weightsFile) : new Float64Array(vocabSize)
  let momentum = new Float64Array(vocabSize)
  const gradient = new Float64Array(vocabSize)
  const probabilities = (temperature: number) => {
    const powers = biases.map(bias => Math.exp(bias / temperature))
    const total = powers.reduce((sum, power) => sum + power, 0)
    return powers.map(power => power / total)
  }
  const policy: Policy = {
    info: {
      vocabSize,
      hiddenSize: 1,
      layers: 1,
      heads: 1,
      kvHeads: 1,
      headDim: 1,
      maxPositionEmbeddings: 64,
      parameters: vocabSize,
      tiedEmbeddings: true,
      dtype: 'float32',
    },
    async generate(prompts, { n, maxNewTokens, temperature, stopTokenIds, seed }) {
      const p = probabilities(temperature || 1)
      const completions: number[][] = []
      const finishReasons: FinishReason[] = []
      for (let i = 0; i < (prompts.offsets.length - 1) * n; i++) {
        const random = createRandom(deriveSeed(seed, i))
        const tokens: number[] = []
        while (tokens.length < maxNewTokens && !stopTokenIds.includes(tokens.at(-1)!)) {
          tokens.push(temperature === 0 ? p.indexOf(Math.max(...p)) : draw(p, random.float()))
        }
        completions.push(tokens)
        finishReasons.push(stopTokenIds.includes(tokens.at(-1)!) ? 'stop' : 'length')
      }
      const tokens = packTokens(completions)
      return { tokens, logprobs: Float32Array.from(tokens.tokenIds, id => Math.log(p[id]!)), finishReasons }
    },
    async logprobs(_sequences, { tokenIds }, temperature) {
      const p = probabilities(temperature)
      const entropy = -p.reduce((sum, mass) => sum + mass * Math.log(mass), 0)
      return {
        logprobs: Float32Array.from(tokenIds, id => Math.log(p[id]!)),
        entropy: Float32Array.from(tokenIds, () => entropy),
      }
    },
    async accumulate({ tokenIds, tokenWeights, advantages }) {
      const p = probabilities(1)
      let loss = 0
      for (const [i, id] of tokenIds.entries()) {
        const push = tokenWeights[i]! * advantages[i]!
        loss -= push
        for (let v = 0; v < vocabSize; v++) gradient[v]! -= push * ((v === id ? 1 : 0) - p[v]!)
      }
      const rows = tokenIds.length
      return { ...emptyMetrics, tokens: rows, loss, ratioSum: rows, ratioMin: 1, ratioMax: 1 }
    },
    async step(learningRate) {
      const gradNorm = Math.hypot(...gradient)
      for (let v = 0; v < vocabSize; v++) {
        momentum[v] = 0.5 * momentum[v]! + gradient[v]!
        biases[v]! -= learningRate * momentum[v]!
      }
      gradient.fill(0)
      return { gradNorm, skipped: false }
    },
    async zeroGrad() {
      gradient.fill(0)
    },
    async save(dir) {
      writeFileSync(path.join(dir, 'weights.json'), JSON.stringify([...biases]))
    },
    async saveState(file) {
      writeFileSync(file, JSON.stringify([...momentum]))
    },
    async loadState(file) {
      momentum = read(file)
    },
    async dispose() {},
    async [Symbol.asyncDispose]() {},
  }
  return policy
}
