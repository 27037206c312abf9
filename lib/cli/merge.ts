/** `rapo merge`: an adapter and its model as one model. */
import { existsSync, readdirSync } from 'node:fs'
import { RapoError } from '../base/errors.js'
import { io, withPlace, writeDirectory } from '../base/files.js'
import { modelDTypeOf, readModelConfig } from '../model/config.js'
import { type OpenPolicyOptions, openPolicy } from '../model/engine.js'
import type { HubOptions } from '../model/hub.js'
import { locateModel } from '../model/locate.js'
import type { ModelDType } from '../model/policy.js'
import { copyTokenizer } from '../model/tokenizer.js'

export interface MergeOptions extends HubOptions, Omit<OpenPolicyOptions, 'loadPolicy'> {
  /** A directory with an adapter of PEFT's, such as a checkpoint of a run with the section lora. */
  readonly adapter: string
  /** Made; must not hold anything yet. */
  readonly output: string
  /** Default: the model's own type. */
  readonly dtype?: ModelDType
}

/**
 * Writes W + s B A, computed in float32, as a model directory with the model's tokenizer. The directory appears when it is
 * whole. Throws RapoError.
 */
export async function mergeAdapter({ adapter, output, dtype, ...hub }: MergeOptions): Promise<void> {
  if (!existsSync(adapter)) throw new RapoError('ERR_RAPO_IO', `there is no directory ${withPlace(adapter)}`)
  const { modelDir, adapterDir } = await locateModel(adapter, hub)
  if (adapterDir === undefined)
    throw new RapoError('ERR_RAPO_FORMAT', `${adapter} holds no adapter of PEFT: there is nothing to merge`)
  if (existsSync(output) && readdirSync(output).length > 0)
    throw new RapoError('ERR_RAPO_CONFIG', `${output} is not empty: choose another --output`)
  const own = modelDTypeOf(readModelConfig(modelDir).text)
  const signal = hub.signal ? { signal: hub.signal } : {}
  const loading = { adapterDir, dtype: own, trainable: false, ...signal } as const
  const policy = await openPolicy(modelDir, loading, 0, hub)
  const fill = async (temporary: string) => {
    await policy.save(temporary, { dtype: dtype ?? own })
    copyTokenizer(modelDir, temporary)
  }
  try {
    await io(`cannot write ${output}`, () => writeDirectory(output, fill))
  } finally {
    await policy.dispose()
  }
}
