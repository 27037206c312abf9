/** Whether the ranks work on the same. */
import { RapoError } from '../base/errors.js'
import type { Config } from '../config/config.js'
import type { World } from './world.js'

/** Throws ERR_RAPO_CONFIG on all ranks where one has another value than rank 0. Each value is shown in the message. */
export async function compareRanks(world: World, own: Readonly<Record<string, unknown>>): Promise<void> {
  const all = await world.gather('comparing the ranks', () =>
    Object.entries(own).map(entry => JSON.stringify(entry)),
  )
  for (const [rank, entries] of all.entries()) {
    const k = entries.findIndex((entry, i) => entry !== all[0]![i])
    if (k < 0) continue
    const [what, value] = JSON.parse(entries[k]!)
    const [, first] = JSON.parse(all[0]![k]!)
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `rank ${rank} does not have the ${what} of rank 0 (${value}, not ${first}): all processes need the same files, and one run directory`,
    )
  }
}

/** The fields that all ranks must have in common: paths and devices may differ from host to host. */
export function settingsOf({ model, data, run, lora, ...rest }: Config): object {
  return {
    ...rest,
    run: { ...run, output: '' },
    model: { ...model, dir: '', reference: '', device: '' },
    lora: { ...lora, adapterPath: '' },
  }
}
