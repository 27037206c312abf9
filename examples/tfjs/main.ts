/**
 * rapo's loss inside TensorFlow.js, whose tape and optimizer get the gradient. A small network answers three digits with the
 * same three digits in reverse; each right digit is worth a third.
 *
 *     npm install && npm start
 *
 * On @tensorflow/tfjs-node, which has the same interface and is faster, only the imports change.
 */
import * as tf from '@tensorflow/tfjs'
import { groupAdvantages, type LossBatch, perRow, policyLoss, rapo, referenceWeights } from 'rapo'

const [V, T, hidden] = [5, 3, 32] // digits, digits a prompt and a completion, units
const [prompts, groupSize, steps] = [16, 16, 100]
const objective = rapo({ klCoef: 0.02, entropyCoef: 0.003 })

/** rapo's loss as a TensorFlow.js operation on logits (N × V): differentiable like any other. */
function rapoLoss(
  logits: tf.Tensor2D,
  batch: Omit<LossBatch<Float32Array>, 'logits' | 'vocabSize'>,
): tf.Scalar {
  const operation = tf.customGrad((z: tf.Tensor | tf.GradSaveFunc) => {
    const values = (z as tf.Tensor2D).dataSync() as Float32Array
    const { loss, gradLogits } = policyLoss({ ...batch, vocabSize: V, logits: values }, objective)
    const gradFunc = (dy: tf.Tensor) => tf.mul(dy, tf.tensor2d(gradLogits, logits.shape))
    return { value: tf.scalar(loss), gradFunc }
  })
  return operation(logits) as tf.Scalar
}

const weights = {
  w1: tf.variable(tf.randomNormal([T * V + T, hidden], 0, 0.3, 'float32', 1)),
  b1: tf.variable(tf.zeros([hidden])),
  w2: tf.variable(tf.randomNormal([hidden, V], 0, 0.1, 'float32', 2)),
  b2: tf.variable(tf.zeros([V])),
}
const frozen = Object.fromEntries(Object.entries(weights).map(([name, w]) => [name, tf.clone(w)]))

/** Inputs (N × T·V+T): the prompt and the position, one-hot. Returns logits (N × V). */
function network(inputs: tf.Tensor2D, { w1, b1, w2, b2 }: Record<string, tf.Tensor>): tf.Tensor2D {
  const units = tf.tanh(tf.add(tf.matMul(inputs, w1 as tf.Tensor2D), b1!)) as tf.Tensor2D
  return tf.add(tf.matMul(units, w2 as tf.Tensor2D), b2!)
}

/** Samples a token for every row by the Gumbel-max trick, since tf.multinomial() uses one random number for all rows. */
function sample(inputs: tf.Tensor2D, seed: number): Int32Array {
  return tf.tidy(() => {
    const logits = network(inputs, weights)
    const gumbel = tf.neg(tf.log(tf.neg(tf.log(tf.randomUniform(logits.shape, 0, 1, 'float32', seed)))))
    return tf.argMax(tf.add(logits, gumbel), 1).dataSync() as Int32Array
  })
}

function encode(prompt: readonly number[], position: number): number[] {
  const digits = prompt.flatMap(digit => Array.from({ length: V }, (_, v) => (v === digit ? 1 : 0)))
  return [...digits, ...Array.from({ length: T }, (_, t) => (t === position ? 1 : 0))]
}

const random = tf.randomUniform([steps * prompts * T], 0, V, 'float32', 3).dataSync()
const promptAt = (i: number) => Array.from(random.subarray(i * T, (i + 1) * T), Math.floor)
const optimizer = tf.train.adam(0.02)
const rewards: number[] = []

for (let step = 0; step < steps; step++) {
  // One row per completion token.
  const rollouts = Array.from({ length: prompts }, (_, p) => promptAt(step * prompts + p)).flatMap(prompt =>
    Array.from({ length: groupSize }, () => prompt),
  )
  const inputs = tf.tensor2d(
    rollouts.flatMap(prompt => Array.from({ length: T }, (_, t) => encode(prompt, t))),
  )
  const tokenIds = sample(inputs, step)
  const reward = rollouts.map((prompt, i) => {
    const completion = tokenIds.subarray(i * T, (i + 1) * T)
    return prompt.toReversed().filter((digit, t) => digit === completion[t]).length / T
  })
  rewards.push(mean(reward))

  const offsets = Array.from({ length: rollouts.length + 1 }, (_, i) => i * T) // rows of each completion
  const batch = {
    refLogits: tf.tidy(() => network(inputs, frozen).dataSync() as Float32Array),
    tokenIds: Int32Array.from(tokenIds),
    tokenWeights: new Float32Array(tokenIds.length).fill(1 / tokenIds.length),
    advantages: perRow(groupAdvantages(reward, groupSize), offsets),
    refWeights: perRow(referenceWeights(reward), offsets),
  }
  optimizer.minimize(() => rapoLoss(network(inputs, weights), batch))
  inputs.dispose()
  if ((step + 1) % 10 === 0) console.log(`step ${step + 1}  reward ${mean(rewards.slice(-10)).toFixed(3)}`)
}
console.log(`reward ${rewards[0]!.toFixed(3)} → ${mean(rewards.slice(-5)).toFixed(3)}`)

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length
}
