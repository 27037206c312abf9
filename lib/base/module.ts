/** A module of the user's, named in the configuration. */
import { existsSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { RapoError } from './errors.js'

/** Imports the file, relative to the working directory. Throws ERR_RAPO_CONFIG naming the field. */
export async function importModule(field: string, name: string): Promise<{ default?: unknown }> {
  const file = path.resolve(name)
  if (!existsSync(file)) throw new RapoError('ERR_RAPO_CONFIG', `${field}: there is no file ${name}`)
  try {
    return await import(/* webpackIgnore: true */ /* @vite-ignore */ pathToFileURL(file).href)
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RapoError('ERR_RAPO_CONFIG', `${field} ${name} did not load: ${why}`, { cause })
  }
}
