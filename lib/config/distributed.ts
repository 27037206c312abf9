/** The section `distributed`: several processes that train together (docs/scale.md). */
import { z } from 'zod'
import { shards } from '../model/policy.js'

export const distributed = z.strictObject({
  shard: z
    .enum(shards)
    .default('none')
    .describe(
      'what the processes share out, so that none holds all of it: optimizer, the float32 weights and moments (ZeRO-1); gradients, these too (ZeRO-2)',
    ),
  timeoutSeconds: z
    .number()
    .min(1)
    .max(86_400)
    .default(1800)
    .describe(
      'longest wait of one process of a run for another that lives; one that has ended is noticed at once',
    ),
})
