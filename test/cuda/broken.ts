/** Runs in a process of its own with a broken kernel behind RAPO_CUDA_LIBRARY; prints the error that the call throws. */
import { gatherLogprobs } from '../../lib/loss/kernels.js'

const rows = 3
const V = 4000
const batch = { vocabSize: V, logits: new Float32Array(rows * V), tokenIds: new Int32Array(rows) }
try {
  console.log(gatherLogprobs(batch, { device: 'cuda' }))
} catch (error) {
  console.log(String(error))
}
