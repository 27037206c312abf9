/** The section `task`: what rewards a completion. */
import { z } from 'zod'
import { extractions } from '../reward/math/extract.js'

export const task = z.strictObject({
  verifier: z
    .string()
    .min(1)
    .describe('what rewards a completion: countdown, exact, math, or the path of a module (docs/rewards.md)'),
  extract: z
    .enum(extractions)
    .optional()
    .describe(
      "math: where a completion's answer is: the last box; final: else what it states; any: else its last formula or number (default: boxed)",
    ),
  tolerance: z
    .union([z.literal('digits'), z.coerce.number().gt(0).lt(1)])
    .optional()
    .meta({
      range: 'a number > 0 and < 1, or digits',
      description:
        'math: how far a decimal may be off, as a share of the reference, or to the digits that it shows (default: exact)',
    }),
  timeout: z
    .number()
    .positive()
    .max(1e6)
    .default(600)
    .describe('seconds that a verdict is waited for, where the verifier gives a promise'),
  onTimeout: z
    .enum(['error', 'zero'])
    .default('error')
    .describe('a verdict that takes longer ends the run, or is reward 0'),
})
