/** The section `task`: what rewards a completion. */
import { z } from 'zod'

export const task = z.strictObject({
  verifier: z
    .string()
    .min(1)
    .describe('what rewards a completion: countdown, exact, math, or the path of a module'),
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
