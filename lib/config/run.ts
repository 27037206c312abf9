/** The section `run`: where a run is written, how long it is, and when it saves. */
import { z } from 'zod'
import { count } from './values.js'

export const run = z.strictObject({
  output: z
    .string()
    .default('')
    .describe('run directory (default: runs/ and the name of the configuration file)'),
  steps: count().default(100).describe('batches of rollouts to train on'),
  seed: count(0).default(1).describe('seed of everything random in the run'),
  saveEvery: count().default(50).describe('steps between checkpoints; the last step is always saved'),
  keepCheckpoints: count().default(2).describe('number of newest checkpoints to keep'),
  saveOptimizer: z
    .enum(['all', 'last'])
    .default('all')
    .describe(
      "checkpoints that hold the optimizer's state, which is most of their size and which a resumed run needs: all, or the newest only",
    ),
  keepBest: z
    .boolean()
    .default(false)
    .describe(
      'keep the checkpoint with the highest pass@1 of all evaluations during training, too (eval.every)',
    ),
  samplesPerStep: count(0).default(2).describe('completions per step written to samples.jsonl'),
  showSamples: count(0)
    .default(0)
    .describe('steps from one pair of sample completions on the terminal to the next; 0 is never'),
  threads: count(0).max(1024).default(0).describe('CPU threads; 0 leaves it to libtorch'),
})
