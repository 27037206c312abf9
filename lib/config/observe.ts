/** The section `observe`: where metrics go besides metrics.jsonl. */
import { z } from 'zod'

export const observe = z.strictObject({
  tensorboard: z.boolean().default(false).describe('write event files for TensorBoard (docs/observe.md)'),
  prometheus: z
    .string()
    .default('')
    .describe("file that gets the newest step for node-exporter's textfile collector; name it *.prom"),
  hook: z.string().default('').describe('path of a module whose default export is called after every step'),
})
