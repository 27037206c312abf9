/**
 * A trainer on rapo's kernels alone: no libtorch, no Python, nothing but arrays. The policy is linear,
 * logits = W x; which of V answers is right for a question x is hidden in a matrix that only the reward knows.
 *
 *     npm install && npm start
 */
import { groupAdvantages, policyLoss, rapo, referenceWeights } from 'rapo'

const [V, D] = [8, 12] // answers, features of a question
const [questions, groupSize, steps, updates, learningRate] = [16, 16, 200, 2, 1]
const objective = rapo({ klCoef: 0.02, entropyCoef: 0.003 })

let state = 1
/** In [0, 1): the mulberry32 generator, so that every run is the same. */
function random() {
  state = (state + 0x6d2b79f5) | 0
  let t = Math.imul(state ^ (state >>> 15), 1 | state)
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
}
const noise = length => Float32Array.from({ length }, () => 2 * random() - 1)

/** (V) W x */
const logitsOf = (W, x) =>
  Float32Array.from({ length: V }, (_, v) => x.reduce((sum, value, d) => sum + W[v * D + d] * value, 0))

/** A token drawn from softmax(logits), and its log-prob. */
function sample(logits) {
  const largest = Math.max(...logits)
  const powers = Array.from(logits, logit => Math.exp(logit - largest))
  const total = powers.reduce((sum, power) => sum + power, 0)
  let u = random() * total
  let token = 0
  while (token < V - 1 && u >= powers[token]) u -= powers[token++]
  return { token, logprob: Math.log(powers[token] / total) }
}

const hidden = noise(V * D)
const rightAnswer = x => {
  const scores = logitsOf(hidden, x)
  return scores.indexOf(Math.max(...scores))
}

const W = noise(V * D).map(value => 0.1 * value)
const reference = W.slice() // frozen
const rewards = []

for (let step = 1; step <= steps; step++) {
  // Rollouts: a group of answers to each question, one row a sampled token (here a completion is one token long).
  const rows = Array.from({ length: questions }, () => noise(D)).flatMap(x =>
    Array.from({ length: groupSize }, () => ({ x, ...sample(logitsOf(W, x)) })),
  )
  const reward = rows.map(({ x, token }) => (token === rightAnswer(x) ? 1 : 0))
  rewards.push(reward.reduce((sum, r) => sum + r, 0) / rows.length)

  const batch = {
    vocabSize: V,
    refLogits: concatenate(rows.map(({ x }) => logitsOf(reference, x))),
    tokenIds: Int32Array.from(rows, row => row.token),
    tokenWeights: new Float32Array(rows.length).fill(1 / rows.length),
    advantages: Float32Array.from(groupAdvantages(reward, groupSize)),
    refWeights: Float32Array.from(referenceWeights(reward)),
    oldLogprobs: Float32Array.from(rows, row => row.logprob),
  }
  // From the second update on the ratio to the policy that sampled differs from 1, and clipping begins to act.
  for (let update = 0; update < updates; update++) {
    const logits = concatenate(rows.map(({ x }) => logitsOf(W, x)))
    const { gradLogits } = policyLoss({ ...batch, logits }, objective)
    // logits = W x, so ∂loss/∂W = Σ over rows of (∂loss/∂logits) xᵀ.
    for (const [row, { x }] of rows.entries()) {
      for (let v = 0; v < V; v++) {
        const slope = learningRate * gradLogits[row * V + v]
        for (let d = 0; d < D; d++) W[v * D + d] -= slope * x[d]
      }
    }
  }
  if (step % 20 === 0) console.log(`step ${step}  reward ${mean(rewards.slice(-20)).toFixed(3)}`)
}
console.log(`reward ${rewards[0].toFixed(3)} → ${mean(rewards.slice(-20)).toFixed(3)}`)

/** @param {readonly Float32Array[]} parts of V numbers each */
function concatenate(parts) {
  const whole = new Float32Array(parts.length * V)
  for (const [i, part] of parts.entries()) whole.set(part, i * V)
  return whole
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length
}
