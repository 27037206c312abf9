/** The section `eval`: how many completions measure pass@k, by `rapo eval` and during training. */
import { z } from 'zod'
import { count, fraction } from './values.js'

/** The temperature of an evaluation. */
export function evalTemperature({
  eval: { temperature },
  sampling,
}: {
  readonly eval: { readonly temperature?: number | undefined }
  readonly sampling: { readonly temperature: number }
}): number {
  return temperature ?? sampling.temperature
}

export const evaluation = z.strictObject({
  samples: count()
    .default(64)
    .describe('n, completions per problem of `rapo eval`; pass@k is given for k = 1, 2, 4 … largestK'),
  temperature: z
    .number()
    .min(0)
    .max(100)
    .optional()
    .describe('of every evaluation; 0 takes the likeliest token (default: sampling.temperature)'),
  every: count(0)
    .default(0)
    .describe('steps of training between evaluations on data.eval; the last step is evaluated too; 0 is off'),
  onStart: z.boolean().default(false).describe('with every: evaluate before the first step, too'),
  samplesInTraining: count()
    .default(4)
    .describe('with every: completions per problem of an evaluation during training'),
  problemsInTraining: count(0)
    .default(0)
    .describe('with every: evaluate the first problems of data.eval only, this many; 0 is all'),
  keepSamples: count(0)
    .default(4)
    .describe(
      'completions per problem written to eval-samples.jsonl (during training: one to evals-samples.jsonl)',
    ),
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
