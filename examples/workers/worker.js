import { parentPort, workerData } from 'node:worker_threads'
import { gatherLogprobs, policyLossAsync, rapo } from 'rapo'

const [rows, V, learningRate] = [64, 1000, 2]
const objective = rapo({ klCoef: 0.02, entropyCoef: 0.003 })

/**
 * Descends the loss of one fixed batch, whose logits are the parameters themselves.
 * @param {number} seed of the batch
 * @returns the loss before the first and after the last of 20 steps
 */
export async function trainPolicy(seed, steps = 20, onStep = () => {}) {
  const wave = (length, scale) => Float32Array.from({ length }, (_, i) => Math.sin(seed + i * i * scale))
  const batch = {
    vocabSize: V,
    logits: wave(rows * V, 0.37),
    refLogits: wave(rows * V, 0.37),
    tokenIds: Int32Array.from({ length: rows }, (_, i) => (i * 7919 * seed) % V),
    tokenWeights: new Float32Array(rows).fill(1 / rows),
    advantages: wave(rows, 0.11),
  }
  batch.oldLogprobs = gatherLogprobs(batch).logprobs
  let first
  let last
  for (let step = 0; step <= steps; step++) {
    const { loss, gradLogits } = await policyLossAsync(batch, objective)
    first ??= loss
    last = loss
    for (const [i, slope] of gradLogits.entries()) batch.logits[i] -= learningRate * slope
    onStep(step)
  }
  return { first, last }
}

if (parentPort && workerData) {
  const { seed } = workerData
  if (seed === Infinity) {
    await trainPolicy(0, Infinity, step => step === 0 && parentPort.postMessage('at work'))
  } else {
    parentPort.postMessage(await trainPolicy(seed))
  }
}
