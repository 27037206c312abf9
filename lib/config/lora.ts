/** The section `lora`: an adapter of low rank that is trained in place of the model. Its fields are PEFT's. */
import { z } from 'zod'
import { loraModules } from '../model/adapter.js'
import { count, list } from './values.js'

export const lora = z.strictObject({
  r: count(0)
    .max(65_536)
    .default(0)
    .describe('rank of the adapter that is trained in place of the model (docs/lora.md); 0 trains the model'),
  loraAlpha: z.number().positive().default(8).describe("the adapter's term is scaled by loraAlpha / r"),
  targetModules: z
    .union([z.string().transform(list), z.array(z.string())])
    .default(['all-linear'])
    .refine(
      names => isAll(names) || (names.length > 0 && names.every(name => loraModules.includes(name as never))),
    )
    .meta({
      range: `all-linear, or some of ${loraModules.join(', ')}: a list, or one text with commas`,
      description: 'matrices that get a term',
    }),
  useRslora: z.boolean().default(false).describe('scale by loraAlpha / √r instead (rank-stabilised)'),
  adapterPath: z
    .string()
    .min(1)
    .optional()
    .describe("directory of an adapter of PEFT's for model.dir to begin with; default: a new adapter"),
  merge: z
    .boolean()
    .default(true)
    .describe(
      'sample from merged weights, as fast as without an adapter, with one more copy of the matrices',
    ),
})

const isAll = (names: readonly string[]) => names.length === 1 && names[0] === 'all-linear'

/** For loadPolicy. */
export function loraOptions({ r, loraAlpha, targetModules, useRslora }: z.output<typeof lora>, seed: number) {
  const modules = isAll(targetModules) ? ('all-linear' as const) : targetModules
  return { r, loraAlpha, useRslora, targetModules: modules, seed }
}
