/** A module of the user's, named in the configuration. */
import { existsSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { RapoError } from './errors.js'
import { waitFor } from './wait.js'

/** Imports the file, relative to the working directory, TypeScript too. Throws ERR_RAPO_CONFIG naming the field. */
export async function importModule(field: string, name: string): Promise<{ default?: unknown }> {
  const file = path.resolve(name)
  if (!existsSync(file)) throw new RapoError('ERR_RAPO_CONFIG', `${field}: there is no file ${name}`)
  try {
    const never = new Error('its top-level await never ends')
    return await waitFor(load(file), { fault: () => never })
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RapoError('ERR_RAPO_CONFIG', `${field} ${name} did not load: ${why}`, { cause })
  }
}

async function load(file: string): Promise<{ default?: unknown }> {
  if (!/\.[cm]?ts$/.test(file)) {
    return import(/* webpackIgnore: true */ /* @vite-ignore */ pathToFileURL(file).href)
  }
  // Every Node.js runs TypeScript by jiti, also those that know a part of TypeScript themselves.
  const { createJiti } = await import('jiti')
  return createJiti(pathToFileURL(file).href).import(file)
}
