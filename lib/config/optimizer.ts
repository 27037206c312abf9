/** The section `optimizer`: AdamW, the learning rate's schedule, and how a batch is split. */
import { z } from 'zod'
import { modelDTypes } from '../model/policy.js'
import { count } from './values.js'

export const optimizer = z.strictObject({
  learningRate: z.number().positive().max(1).default(1e-6).describe('peak learning rate'),
  schedule: z
    .enum(['constant', 'linear', 'cosine'])
    .default('constant')
    .describe('after the warm-up: constant, or falling to 0 at run.steps'),
  warmupSteps: count(0).default(0).describe('steps over which the learning rate rises from 0'),
  beta1: z.number().min(0).lt(1).default(0.9).describe('AdamW'),
  beta2: z.number().min(0).lt(1).default(0.999).describe('AdamW'),
  eps: z.number().positive().max(1).default(1e-8).describe('AdamW'),
  weightDecay: z.number().min(0).max(1).default(0).describe('AdamW'),
  stateDtype: z
    .enum(modelDTypes)
    .default('float32')
    .describe("type of AdamW's moments; bfloat16 halves them, rounded stochastically by run.seed"),
  maxGradNorm: z.number().positive().default(1).describe("the gradient's norm is clipped to this"),
  stepsPerBatch: count()
    .default(1)
    .describe('optimizer steps per batch of rollouts; at most sampling.promptsPerStep'),
  microBatchTokens: count()
    .default(16384)
    .describe(
      'tokens of a micro-batch, of which the engine takes as many at once as 2 GB of activations hold',
    ),
  recompute: z
    .boolean()
    .default(false)
    .describe(
      'keep less of the forward pass and compute it again: a fraction of the memory for one more forward pass',
    ),
})
