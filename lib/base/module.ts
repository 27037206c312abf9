/** Imports modules of the user's that the configuration names. */
import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { RapoError, reasonOf } from './errors.js'
import { withPlace } from './files.js'
import { reasonAndPlace, showPlace } from './thrown.js'
import { importTypeScript, syntaxFault } from './typescript.js'
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
    const why = await describeFailure(cause, file)
    throw new RapoError('ERR_RAPO_CONFIG', `${field} ${name} did not load: ${why}`, { cause })
  }
}

async function describeFailure(cause: unknown, file: string): Promise<string> {
  const why = reasonAndPlace(cause).replace(/\s*\n\s*/g, ' ')
  if (!(cause instanceof SyntaxError) || why !== reasonOf(cause)) return why
  // Node.js keeps the place of a syntax error to itself.
  const place = await syntaxFault(file)
  return place ? `${why} (${showPlace(file, ...place)})` : why
}

/** What Node.js says of TypeScript that it cannot run by itself, wholly or in part. */
const needsJiti = new Set([
  ...['ERR_UNKNOWN_FILE_EXTENSION', 'ERR_UNSUPPORTED_TYPESCRIPT_SYNTAX', 'ERR_INVALID_TYPESCRIPT_SYNTAX'],
  ...['ERR_UNSUPPORTED_NODE_MODULES_TYPE_STRIPPING', 'ERR_MODULE_NOT_FOUND'],
])

async function load(file: string): Promise<Exports> {
  if (isTakenForCommonJs(file)) return importTypeScript(file)
  const url = pathToFileURL(file).href
  try {
    // First import as the program itself would: a module that the program has loaded is then the same module.
    return await import(/* webpackIgnore: true */ /* @vite-ignore */ url)
  } catch (error) {
    if (!/\.[cm]?ts$/.test(file) || !needsJiti.has(String((error as NodeJS.ErrnoException)?.code)))
      throw error
  }
  return importTypeScript(file)
}

/**
 * Whether Node.js would refuse the file's import and export, since its package.json says commonjs, as that of `npm init -y`
 * does. Node.js would also print a warning.
 */
function isTakenForCommonJs(file: string): boolean {
  if (!/\.[jt]s$/.test(file) || typeOfPackage(path.dirname(file)) !== 'commonjs') return false
  return /^\s*(import|export)\b/m.test(readFileSync(file, 'utf8'))
}

/** The field type of the nearest package.json. */
function typeOfPackage(dir: string): unknown {
  const file = path.join(dir, 'package.json')
  const above = path.dirname(dir)
  if (!existsSync(file)) return above === dir ? undefined : typeOfPackage(above)
  try {
    return JSON.parse(readFileSync(file, 'utf8')).type
  } catch {
    return undefined // Node.js says what is wrong with it
  }
}
