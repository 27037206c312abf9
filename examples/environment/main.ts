/**
 * A Policy used directly, with an environment of several turns: a Countdown puzzle to which the model may give a second
 * answer. An Episode keeps the tokens of all turns. The environment's tokens are part of the sequence, but only the model's
 * own tokens are trained on. Trains the small model that comes with rapo.
 *
 *     npm install && npx rapo setup && npm start
 */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import {
  type Completion,
  type CountdownAnswer,
  Episode,
  groupAdvantages,
  loadPolicy,
  loadTokenizer,
  packTokens,
  rapo,
  readStopTokenIds,
  referenceWeights,
  splitBatch,
  tokenWeights,
  unpackCompletions,
  verifyCountdown,
} from 'rapo'

const [groupSize, maxNewTokens, turns, steps] = [16, 16, 2, 20]
const objective = rapo({ klCoef: 0.02, entropyCoef: 0.003 })

const packageFile = (name: string) => fileURLToPath(new URL(name, import.meta.resolve('rapo/package.json')))
const modelDir = packageFile('models/countdown-base')
const tokenizer = loadTokenizer(modelDir)
const stopTokenIds = readStopTokenIds(modelDir)
const problems = readFileSync(packageFile('data/countdown/train.jsonl'), 'utf8')
  .split('\n')
  .slice(0, 8) // few, so that learning shows within a minute
  .map(line => JSON.parse(line) as { prompt: string; answer: CountdownAnswer })

/** One attempt at a puzzle. */
class Attempt {
  readonly episode: Episode
  reward = 0
  isOver = false

  constructor(readonly problem: (typeof problems)[number]) {
    this.episode = new Episode(tokenizer.encode(problem.prompt))
  }

  /** The model has answered in this turn. The first answer is worth 1, a second one half. */
  judge(completion: Completion, turn: number) {
    this.episode.addCompletion(completion)
    const { tokenIds, finishReason } = completion
    const text = tokenizer.decode(finishReason === 'stop' ? tokenIds.subarray(0, -1) : tokenIds)
    const isCorrect = verifyCountdown(text, this.problem.answer).reward === 1
    if (isCorrect) this.reward = 1 / turn
    this.isOver = isCorrect || turn === turns
    if (!this.isOver) this.episode.addContext(tokenizer.encode(this.problem.prompt))
  }
}

const policy = await loadPolicy(modelDir, { referenceDir: modelDir })
const rewards: number[] = []
for (let step = 1; step <= steps; step++) {
  const attempts = problems.flatMap(problem => Array.from({ length: groupSize }, () => new Attempt(problem)))

  for (let turn = 1; turn <= turns; turn++) {
    const live = attempts.filter(attempt => !attempt.isOver)
    if (live.length === 0) break
    const completions = await policy.generate(packTokens(live.map(({ episode }) => episode.tokenIds)), {
      n: 1,
      maxNewTokens,
      stopTokenIds,
      seed: step * turns + turn,
    })
    for (const [i, completion] of unpackCompletions(completions).entries()) live[i]!.judge(completion, turn)
  }

  const reward = attempts.map(attempt => attempt.reward)
  rewards.push(mean(reward))
  const advantages = groupAdvantages(reward, groupSize)
  const refWeights = referenceWeights(reward)
  const sequences = attempts.map(({ episode }, i) =>
    episode.toSequence({ advantage: advantages[i]!, refWeight: refWeights[i]! }),
  )
  const weights = tokenWeights(sequences, 'sequence-mean', turns * maxNewTokens)
  let trained = 0
  for (const batch of splitBatch(sequences, weights, 16384)) {
    trained += (await policy.accumulate(batch, objective)).tokens
  }
  await policy.step(5e-4)
  const written = attempts.reduce((sum, { episode }) => sum + episode.trainedTokens, 0)
  if (trained !== written) throw new Error(`${trained} tokens trained, ${written} written by the model`)
  if (step % 5 === 0) console.log(`step ${step}  reward ${mean(rewards.slice(-5)).toFixed(3)}`)
}
await policy.dispose()
console.log(`reward ${mean(rewards.slice(0, 5)).toFixed(3)} → ${mean(rewards.slice(-5)).toFixed(3)}`)

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length
}
