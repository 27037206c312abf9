/** Where a model is, and the adapter that changes it. */
import { existsSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { isAdapter, readAdapter } from './adapter.js'
import { type HubOptions, resolveModel } from './hub.js'

export interface Located {
  /** The model, with its tokenizer. */
  readonly modelDir: string
  /** The directory that was given, where it holds an adapter of PEFT's and no model. */
  readonly adapterDir?: string
}

/**
 * A directory with a model is itself. For a directory with an adapter, the model is the one that adapter_config.json
 * names: a directory, or a name on the hub, from which it is then fetched. Throws as readAdapter and resolveModel do.
 */
export async function locateModel(dir: string, options: HubOptions = {}): Promise<Located> {
  if (!isAdapter(dir) || existsSync(path.join(dir, 'config.json'))) return { modelDir: dir }
  const { baseModel } = readAdapter(dir)
  const fault = (what: string, cause?: unknown) =>
    new RapoError(
      'ERR_RAPO_FORMAT',
      `${path.join(dir, 'adapter_config.json')}: base_model_name_or_path ${what}`,
      {
        cause,
      },
    )
  if (baseModel === undefined) throw fault('is missing: it names the model that the adapter changes')
  const modelDir = await resolveModel(baseModel, options)
  if (!existsSync(modelDir)) throw fault(`is ${JSON.stringify(baseModel)}; there is no such directory`)
  return { modelDir, adapterDir: dir }
}
