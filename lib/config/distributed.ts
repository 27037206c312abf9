/** The section `distributed`: several processes that train together (docs/scale.md). */
import { z } from 'zod'

export const distributed = z.strictObject({
  timeoutSeconds: z
    .number()
    .min(1)
    .max(86_400)
    .default(1800)
    .describe(
      'longest wait of one process of a run for another that lives; one that has ended is noticed at once',
    ),
})
