/** The section `task`: what rewards a completion. */
import { z } from 'zod'

export const task = z.strictObject({
  verifier: z
    .string()
    .min(1)
    .describe('what rewards a completion: countdown, exact, math, or the path of a module'),
})
