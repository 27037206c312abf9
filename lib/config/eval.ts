/** The section `eval`: how many completions measure pass@k. */
import { z } from 'zod'
import { count, fraction } from './values.js'

export const evaluation = z.strictObject({
  samples: count()
    .default(64)
    .describe('n, completions per problem; pass@k is given for k = 1, 2, 4 … largestK'),
  keepSamples: count(0).default(4).describe('completions per problem written to eval-samples.jsonl'),
  bootstrap: count(100).max(1e6).default(1000).describe('resamples behind the 95 % intervals'),
  seed: count(0).default(1).describe('seed of the samples and the intervals'),
  samplesPerCall: count()
    .default(2048)
    .describe(
      'completions sampled at once, of several problems or a part of one; what an interruption loses at most',
    ),
  largestK: count(0)
    .default(0)
    .describe('k of pass@k goes up to this, at most n; 0: up to n/2, and at least 1'),
  base: z
    .string()
    .default('')
    .describe("eval.json of the base model: its hard problems become a group, 'hard for base'"),
  hardBelow: fraction()
    .default(0)
    .describe('hard: no sample of the base is right, or a smaller share of its samples than this'),
})
