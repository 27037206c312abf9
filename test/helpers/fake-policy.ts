/**
 * A Policy without the engine, for tests of the trainer. It is a real, tiny model: the next token depends only on the number of
 * tokens that the completion has already. It is trained by its exact policy gradient and SGD with momentum.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createRandom, deriveSeed } from '../../lib/base/random.js'
import { emptyMetrics } from '../../lib/loss/objective.js'
import { packTokens } from '../../lib/model/batch.js'
import type { FinishReason, LoadPolicy, MicroBatch, PackedTokens, Policy } from '../../lib/model/policy.js'
import { vocabSize, writeTokenizer } from '../../scripts/countdown-tokenizer.js'

const tempDirs: string[] = []
process.on('exit', () => {
  for (const dir of tempDirs) rmSync(dir, { recursive: true, force: true })
})

/** A directory that is removed when the process ends. */
export function makeTempDir(): string {
  const dir = mkdtempSync(path.join(tmpdir(), 'rapo-test-'))
  tempDirs.push(dir)
  return dir
}

const positions = 4
const size = positions * vocabSize

/** A model directory for loadFakePolicy. biases: logits of some token ids, the same at every position; the others are 0. */
export function makeFakeModel(biases: Readonly<Record<number, number>> = {}): string {
  const dir = makeTempDir()
  writeTokenizer(dir)
  const weights = Array.from({ length: size }, (_, i) => biases[i % vocabSize] ?? 0)
  writeFileSync(path.join(dir, 'weights.json'), JSON.stringify(weights))
  return dir
}

/** The first id whose cumulative probability exceeds u. */
function draw(p: Float64Array, u: number): number {
  let cumulated = 0
  for (const [id, mass] of p.entries()) {
    cumulated += mass
    if (u < cumulated) return id
  }
  return p.length - 1
}

/** The penalty is a fortieth of the squared distance of the logits from the reference's: little, so that the task is learnt. */
export const loadFakePolicy: LoadPolicy = async (dir, options = {}) => {
  const read = (file: string) => Float64Array.from(JSON.parse(readFileSync(file, 'utf8')))
  const biases = read(path.join(dir, 'weights.json'))
  const { referenceDir } = options
  const reference = referenceDir === undefined ? undefined : read(path.join(referenceDir, 'weights.json'))
  let momentum = new Float64Array(size)
  const gradient = new Float64Array(size)
  const startOf = (position: number) => Math.min(position, positions - 1) * vocabSize
  const probabilities = (position: number, temperature: number) => {
    const start = startOf(position)
    const powers = biases.slice(start, start + vocabSize).map(bias => Math.exp(bias / temperature))
    const total = powers.reduce((sum, power) => sum + power, 0)
    return powers.map(power => power / total)
  }
  /** For each row, the number of earlier rows in its sequence. */
  const positionsOf = ({ offsets }: PackedTokens, rowPositions: Int32Array) => {
    const counts = new Int32Array(offsets.length)
    return Array.from(rowPositions, row => counts[offsets.findIndex(offset => offset > row)]!++)
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
      parameters: size,
      tiedEmbeddings: true,
      dtype: 'float32',
    },
    async generate(prompts, { n, maxNewTokens, temperature, stopTokenIds, seed }) {
      const completions: number[][] = []
      const logprobs: number[] = []
      const finishReasons: FinishReason[] = []
      for (let i = 0; i < (prompts.offsets.length - 1) * n; i++) {
        const [own, sample] = typeof seed === 'number' ? [seed, i] : [seed[Math.floor(i / n)]!, i % n]
        const random = createRandom(deriveSeed(own, sample))
        const tokens: number[] = []
        while (tokens.length < maxNewTokens && !stopTokenIds.includes(tokens.at(-1)!)) {
          const p = probabilities(tokens.length, temperature || 1)
          const id = temperature === 0 ? p.indexOf(Math.max(...p)) : draw(p, random.float())
          tokens.push(id)
          logprobs.push(Math.log(p[id]!))
        }
        completions.push(tokens)
        finishReasons.push(stopTokenIds.includes(tokens.at(-1)!) ? 'stop' : 'length')
      }
      return { tokens: packTokens(completions), logprobs: Float32Array.from(logprobs), finishReasons }
    },
    async logprobs(sequences, { rowPositions, tokenIds }, temperature) {
      const rows = positionsOf(sequences, rowPositions).map(position => probabilities(position, temperature))
      return {
        logprobs: Float32Array.from(rows, (p, i) => Math.log(p[tokenIds[i]!]!)),
        entropy: Float32Array.from(rows, p => -p.reduce((sum, mass) => sum + mass * Math.log(mass), 0)),
      }
    },
    async accumulate({ sequences, rowPositions, tokenIds, tokenWeights, advantages }, { klCoef }) {
      let loss = 0
      for (const [i, position] of positionsOf(sequences, rowPositions).entries()) {
        const p = probabilities(position, 1)
        const push = tokenWeights[i]! * advantages[i]!
        loss -= push
        for (const [v, mass] of p.entries()) {
          gradient[startOf(position) + v]! -= push * ((v === tokenIds[i] ? 1 : 0) - mass)
        }
      }
      for (let v = 0; v < size && reference; v++) gradient[v]! += 0.05 * klCoef * (biases[v]! - reference[v]!)
      const rows = tokenIds.length
      return { ...emptyMetrics, tokens: rows, loss, ratioSum: rows, ratioMin: 1, ratioMax: 1 }
    },
    async step(learningRate) {
      const gradNorm = Math.hypot(...gradient)
      for (let v = 0; v < size; v++) {
        momentum[v] = 0.5 * momentum[v]! + gradient[v]!
        biases[v]! -= learningRate * momentum[v]!
      }
      gradient.fill(0)
      return { gradNorm, skipped: false }
    },
    async syncReference(share) {
      for (let v = 0; v < size; v++) reference![v] = share * biases[v]! + (1 - share) * reference![v]!
    },
    async saveReference(dir) {
      writeFileSync(path.join(dir, 'weights.json'), JSON.stringify([...reference!]))
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

/** loadFakePolicy, and every batch that its policies were told to accumulate. */
export function recordBatches(): { readonly batches: MicroBatch[]; readonly loadPolicy: LoadPolicy } {
  const batches: MicroBatch[] = []
  const loadPolicy: LoadPolicy = async (dir, options) => {
    const policy = await loadFakePolicy(dir, options)
    return {
      ...policy,
      accumulate: (batch, ...rest) => {
        batches.push(batch)
        return policy.accumulate(batch, ...rest)
      },
    }
  }
  return { batches, loadPolicy }
}
