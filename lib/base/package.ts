/** The directory and the version of this package. */
import { readFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

/** scripts/build.mjs inserts the version, so that importing rapo reads no file. */
declare const RAPO_VERSION: string | undefined

/**
 * The package's directory, seen from lib/base/, dist/base/ or esm/base/. In a bundle the code lies elsewhere: the value is then
 * another directory, or '' if the bundler does not support import.meta.url.
 */
export const packageRoot: string = import.meta.url
  ? resolve(dirname(fileURLToPath(import.meta.url)), '../..')
  : ''

export const packageVersion: string = typeof RAPO_VERSION === 'string' ? RAPO_VERSION : readPackage().version

/** Whether packageRoot is rapo's directory. It is not if a bundler copied the code into another file. */
export function isInPackage(): boolean {
  try {
    return readPackage().name === 'rapo'
  } catch {
    return false
  }
}

function readPackage(): { name?: string; version: string } {
  return JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8'))
}
