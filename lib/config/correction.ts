/** The section `correction`: importance weights where sampler and trainer differ. */
import { z } from 'zod'
import { type Correction, correctionLevels, outsideChoices } from '../loss/correction.js'
import { dropUndefined, fraction } from './values.js'

export const correction = z.strictObject({
  level: z
    .enum(['off', ...correctionLevels])
    .optional()
    .describe(
      'weigh the policy term by trainer / sampler probability of each token or sequence (default: off; token, or with surrogate gspo sequence, where servers sample)',
    ),
  outside: z
    .enum(outsideChoices)
    .optional()
    .describe('a ratio beyond the bounds is moved to the bound, or gets weight 0 (default truncate)'),
  low: fraction().optional().describe('lower bound of the ratio (default 0)'),
  high: z.number().min(1).max(1e6).optional().describe('upper bound of the ratio (default 2)'),
  maxDivergence: z
    .number()
    .positive()
    .max(1e6)
    .optional()
    .describe(
      'completions with a negative advantage and a mean log-ratio sampler / trainer above this are left out of the ' +
        'policy term (default: none is)',
    ),
})

export type ResolvedCorrection = ({ readonly level: 'off' } | Correction) & {
  readonly maxDivergence?: number
}

/** Where servers sample, their log-probs are not exactly the policy's, and a level is the default. */
export function resolveCorrection(
  given: z.output<typeof correction>,
  { engine, surrogate }: { readonly engine: string; readonly surrogate: string },
): ResolvedCorrection {
  const usual = engine === 'local' ? 'off' : surrogate === 'gspo' ? 'sequence' : 'token'
  const level = given.level ?? usual
  // Without a level the bounds stay as given, for crossFaults to refuse.
  const defaults = level === 'off' ? {} : { outside: 'truncate', low: 0, high: 2 }
  return { ...defaults, ...dropUndefined(given), level } as ResolvedCorrection
}
