/** Imports modules of the user's that the configuration names. */
import { existsSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { RapoError, reasonOf } from './errors.js'
import { withPlace } from './files.js'
import { waitFor } from './wait.js'

/** What a module exports, by name. */
export type Exports = Readonly<Record<string, unknown>>

/** Imports the file, relative to the working directory, TypeScript too. Throws ERR_RAPO_CONFIG naming the field. */
export async function importModule(field: string, name: string): Promise<Exports> {
  const file = path.resolve(name)
  if (!existsSync(file))
    throw new RapoError('ERR_RAPO_CONFIG', `${field}: there is no file ${withPlace(name)}`)
  try {
    const never = new Error('its top-level await never ends')
    return await waitFor(load(file), { fault: () => never })
  } catch (cause) {
    const why = reasonOf(cause)
    throw new RapoError('ERR_RAPO_CONFIG', `${field} ${name} did not load: ${why}`, { cause })
  }
}

/** What Node.js says of TypeScript that it cannot run by itself, wholly or in part. */
const needsJiti = new Set([
  ...['ERR_UNKNOWN_FILE_EXTENSION', 'ERR_UNSUPPORTED_TYPESCRIPT_SYNTAX', 'ERR_INVALID_TYPESCRIPT_SYNTAX'],
  ...['ERR_UNSUPPORTED_NODE_MODULES_TYPE_STRIPPING', 'ERR_MODULE_NOT_FOUND'],
])

async function load(file: string): Promise<Exports> {
  const url = pathToFileURL(file).href
  try {
    // First import as the program itself would: a module that the program has loaded is then the same module.
    return await import(/* webpackIgnore: true */ /* @vite-ignore */ url)
  } catch (error) {
    if (!/\.[cm]?ts$/.test(file) || !needsJiti.has(String((error as NodeJS.ErrnoException)?.code)))
      throw error
  }
  const { createJiti } = await import('jiti')
  return createJiti(url).import(file)
}
