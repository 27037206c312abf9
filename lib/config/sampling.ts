/** The section `sampling`: how completions are sampled. */
import { z } from 'zod'
import { count } from './values.js'

export const sampling = z.strictObject({
  groupSize: count(2).max(65536).default(8).describe('G, completions per prompt'),
  promptsPerStep: count().default(16).describe('problems per step'),
  temperature: z
    .number()
    .max(100)
    .refine(value => value === 0 || value >= 1e-6)
    .default(1)
    .meta({
      range: '0, or a number ≥ 0.000001 and ≤ 100',
      description: 'τ; the objective divides the logits by the same; 0 is greedy, for measurements alone',
    }),
  topP: z
    .number()
    .positive()
    .max(1)
    .default(1)
    .describe('sample from the likeliest tokens with this mass; 1 is off'),
  topK: count(0).default(0).describe('sample from so many of the likeliest tokens; 0 is off'),
  minP: z
    .number()
    .min(0)
    .lt(1)
    .default(0)
    .describe('drop tokens less likely than this times the likeliest; 0 is off'),
  filterGroups: z
    .enum(['off', 'reward', 'acc'])
    .default('off')
    .describe(
      'leave out groups whose rewards (acc: those of the verifier) are all equal, and sample further prompts instead',
    ),
  maxNumGenBatches: count()
    .default(10)
    .describe(
      'with filterGroups: times that a step samples, at most; then it is trained on the groups found',
    ),
  maxNewTokens: count().default(1024).describe('longest completion, in tokens'),
})
