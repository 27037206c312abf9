/**
 * `npm run bench:scale`: a model of a step's time on many GPUs, computed from the formulas in docs/scale.md; nothing is measured.
 * Prints the table of that page.
 */
import { fileURLToPath } from 'node:url'
import { createRandom, type Random } from '../lib/base/random.js'
import { splitEvenly } from '../lib/model/batch.js'
import { type Shard, shards } from '../lib/model/policy.js'
import { costOf, dealByCost } from '../lib/train/share.js'

/** Qwen2.5-7B: parameters, and those of them that are in products; the head is one of these, the embeddings are not. */
const model = { parameters: 7.6156e9, products: 7.6156e9 - 152_064 * 3584, layers: 28, hiddenSize: 3584 }
/** Keys and values of a token: 4 heads of 128 numbers in bfloat16. */
const cacheBytes = 2 * model.layers * 4 * 128 * 2
/** An H100 and its network: bytes and operations a second of a GPU, and the seconds that an exchange takes per node beside its bytes. */
const gpu = {
  flops: 0.4 * 989e12,
  memory: 0.6 * 3.35e12,
  launch: 0.002,
  inNode: 350e9,
  betweenNodes: 40e9,
  latency: 15e-6,
  perNode: 8,
}
/** Of a rank: 8 groups of 8 completions. */
const batch = { groups: 8, groupSize: 8, promptTokens: 200, most: 8192, microBatchTokens: 16_384 }
const exchangeElements = 2 ** 24
/** Of the passes through the model: the reference's forward pass, and the forward pass computed again in the backward pass. */
const extraPasses = 2

/** Tokens of a completion: lognormal, with a mean of 1.4k and a longest of batch.most. */
function drawLength(random: Random): number {
  const normal = Math.sqrt(-2 * Math.log(1 - random.float())) * Math.cos(2 * Math.PI * random.float())
  return Math.round(Math.min(batch.most, Math.max(64, 1100 * Math.exp(0.75 * normal))))
}

/** Operations to train on a sequence: 3 passes for forward and backward, 3.5 in attention, whose scores are computed again. */
export function trainFlop(tokens: number): number {
  const products = (3 + extraPasses) * 2 * model.products * tokens
  return products + (3.5 + extraPasses) * 2 * model.hiddenSize * model.layers * tokens ** 2
}

/** Seconds until completions of these lengths, sampled together, have ended: each token reads the weights and all caches. */
export function generateSeconds(lengths: readonly number[]): number {
  const sorted = lengths.toSorted((a, b) => a - b)
  let [seconds, done] = [0, 0]
  for (const [i, length] of sorted.entries()) {
    const [running, steps] = [sorted.length - i, length - done]
    const context = batch.promptTokens + done + steps / 2
    const bytes = 2 * model.parameters + running * context * cacheBytes
    seconds += steps * (bytes / gpu.memory + gpu.launch)
    done = length
  }
  return seconds
}

/** Seconds of a step's exchanges that no computation hides, with rings over all ranks. */
export function exchangeSeconds(ranks: number, shard: Shard, train: number, passes: number): number {
  const nodes = Math.ceil(ranks / gpu.perNode)
  const speed = nodes > 1 ? gpu.betweenNodes : gpu.inNode
  const exchanges = model.parameters / exchangeElements
  /** Reduce-scatter or all-gather of all parameters. */
  const once = (bytes: number) =>
    (((ranks - 1) / ranks) * bytes * model.parameters) / speed + exchanges * nodes * gpu.latency
  if (shard === 'none') return 2 * once(4)
  if (shard === 'optimizer') return 2 * once(4) + once(2)
  const backward = (2 / (3 + extraPasses)) * train
  return Math.max(0, passes * once(4) - backward) + once(2)
}

export interface ScaleRow {
  readonly ranks: number
  readonly shard: Shard
  /** Seconds. */
  readonly generate: number
  readonly train: number
  readonly exchange: number
  readonly step: number
  /** Trained tokens a second and GPU. */
  readonly tokens: number
  /** The slowest rank's training, as a multiple of the mean: groups dealt by cost, and dealt in their order. */
  readonly dealt: number
  readonly inOrder: number
}

/** A step for each way of sharing out, of ranks that sample and train in turn. The lengths are always the same. */
export function modelStep(ranks: number): ScaleRow[] {
  const random = createRandom(1)
  const groups = Array.from({ length: ranks * batch.groups }, () =>
    Array.from({ length: batch.groupSize }, () => drawLength(random)),
  )
  const total = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0)
  const totalOf = (of: (tokens: number) => number) =>
    groups.map(group => total(group.map(length => of(batch.promptTokens + length))))
  const seconds = totalOf(trainFlop).map(flop => flop / gpu.flops)
  const dealt = dealByCost(
    totalOf(tokens => costOf(tokens, model)),
    ranks,
  )
  const inOrder = splitEvenly(
    groups.map((_, g) => g),
    ranks,
  )
  const slowest = (parts: readonly (readonly number[])[]) =>
    Math.max(...parts.map(own => total(own.map(g => seconds[g]!))))
  const [train, mean] = [slowest(dealt), total(seconds) / ranks]
  const generate = Math.max(...inOrder.map(own => generateSeconds(own.flatMap(g => groups[g]!))))
  const tokens = total(totalOf(count => count)) / ranks
  const passes = Math.ceil(tokens / batch.microBatchTokens)
  return shards.map(shard => {
    const exchange = exchangeSeconds(ranks, shard, train, passes)
    const step = generate + train + exchange
    const balance = { dealt: train / mean, inOrder: slowest(inOrder) / mean }
    return { ranks, shard, generate, train, exchange, step, tokens: tokens / step, ...balance }
  })
}

/** The table of docs/scale.md. */
export function scaleTable(): string[] {
  const rows = [8, 64, 1024].flatMap(modelStep)
  return [
    '| GPUs | `distributed.shard` | generate | train | exchange | step | tokens/s a GPU |',
    '|---|---|---|---|---|---|---|',
    ...rows.map(({ ranks, shard, generate, train, exchange, step, tokens }) => {
      const times = [generate, train, exchange, step].map(value => value.toFixed(1))
      return `| ${[ranks, `\`${shard}\``, ...times, tokens.toFixed(0)].join(' | ')} |`
    }),
  ]
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  console.log(scaleTable().join('\n'))
  for (const ranks of [8, 64, 1024]) {
    const { dealt, inOrder } = modelStep(ranks)[0]!
    console.log(
      `${ranks} GPUs, the slowest rank's training over the mean: ${dealt.toFixed(2)} dealt by cost, ${inOrder.toFixed(2)} in order`,
    )
  }
}
