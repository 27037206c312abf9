/**
 * Policy used directly, with an environment of several turns: a Countdown puzzle of which the model may give a second
 * answer. What the environment says between the turns is part of the sequence, but only the model's own tokens are
 * trained on (completionMask). Trains the small model that comes with rapo.
 *
 *     npm install && npx rapo setup && npm start
 */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import {
  type CountdownAnswer,
  groupAdvantages,
  loadPolicy,
  loadTokenizer,
  packTokens,
  rapo,
  readStopTokenIds,
  referenceWeights,
  splitBatch,
  tokenWeights,
  verifyCountdown,
} from 'rapo'

const [groupSize, maxNewTokens, turns, steps] = [16, 16, 2, 20]
const objective = rapo({ klCoef: 0.02, entropyCoef: 0.003 })
const phi = { phiMin: 0.7, phiMax: 1, rMin: 0, rMax: 1 }

const packageFile = (name: string) => fileURLToPath(new URL(name, import.meta.resolve('rapo/package.json')))
const modelDir = packageFile('models/countdown-base')
const tokenizer = loadTokenizer(modelDir)
const stopTokenIds = readStopTokenIds(modelDir)
const problems = readFileSync(packageFile('data/countdown/train.jsonl'), 'utf8')
  .split('\n')
  .slice(0, 8) // few, so that learning shows within a minute
  .map(line => JSON.parse(line) as { prompt: string; answer: CountdownAnswer })

/** The conversation so far. mask: 1 where the model wrote the token; logprobs: its log-prob there, else 0. */
class Episode {
  readonly tokenIds: number[] = []
  readonly mask: number[] = []
  readonly logprobs: number[] = []
  reward = 0
  isOver = false

  constructor(readonly problem: (typeof problems)[number]) {
    this.say(problem.prompt)
  }

  /** The environment speaks. */
  say(text: string) {
    for (const id of tokenizer.encode(text)) this.add(id, 0, 0)
  }

  /** The model has spoken; the environment answers. The first answer is worth 1, a second one half. */
  hear(completionIds: Int32Array, logprobs: Float32Array, turn: number) {
    for (const [i, id] of completionIds.entries()) this.add(id, 1, logprobs[i]!)
    const isStopped = stopTokenIds.includes(completionIds.at(-1)!)
    const text = tokenizer.decode(isStopped ? completionIds.subarray(0, -1) : completionIds)
    const isCorrect = verifyCountdown(text, this.problem.answer).reward === 1
    if (isCorrect) this.reward = 1 / turn
    this.isOver = isCorrect || turn === turns
    if (!this.isOver) this.say(this.problem.prompt)
  }

  private add(id: number, mask: number, logprob: number) {
    this.tokenIds.push(id)
    this.mask.push(mask)
    this.logprobs.push(logprob)
  }
}

const policy = await loadPolicy(modelDir, { referenceDir: modelDir })
const rewards: number[] = []
for (let step = 1; step <= steps; step++) {
  const episodes = problems.flatMap(problem => Array.from({ length: groupSize }, () => new Episode(problem)))

  for (let turn = 1; turn <= turns; turn++) {
    const live = episodes.filter(episode => !episode.isOver)
    if (live.length === 0) break
    const { tokens, logprobs } = await policy.generate(packTokens(live.map(episode => episode.tokenIds)), {
      n: 1,
      maxNewTokens,
      temperature: 1,
      topP: 1,
      topK: 0,
      minP: 0,
      stopTokenIds,
      seed: step * turns + turn,
    })
    for (const [i, episode] of live.entries()) {
      const [start, end] = [tokens.offsets[i]!, tokens.offsets[i + 1]!]
      episode.hear(tokens.tokenIds.subarray(start, end), logprobs.subarray(start, end), turn)
    }
  }

  const reward = episodes.map(episode => episode.reward)
  rewards.push(mean(reward))
  const advantages = groupAdvantages(reward, groupSize)
  const refWeights = referenceWeights(reward, phi)
  const sequences = episodes.map(({ tokenIds, mask, logprobs }, i) => ({
    tokenIds,
    completionMask: mask,
    oldLogprobs: logprobs,
    advantage: advantages[i]!,
    refWeight: refWeights[i]!,
  }))
  const weights = tokenWeights(sequences, 'sequence-mean', turns * maxNewTokens)
  let trained = 0
  for (const batch of splitBatch(sequences, weights, 16384)) {
    trained += (await policy.accumulate(batch, objective)).tokens
  }
  await policy.step(5e-4)
  const written = episodes.reduce((sum, { mask }) => sum + mask.filter(Boolean).length, 0)
  if (trained !== written) throw new Error(`${trained} tokens trained, ${written} written by the model`)
  if (step % 5 === 0) console.log(`step ${step}  reward ${mean(rewards.slice(-5)).toFixed(3)}`)
}
await policy.dispose()
console.log(`reward ${mean(rewards.slice(0, 5)).toFixed(3)} → ${mean(rewards.slice(-5)).toFixed(3)}`)

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length
}
