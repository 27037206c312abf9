/** Where the files of this package are, and its version. */
import { readFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

/** scripts/build.mjs puts the version in, so that importing rapo reads no file. */
declare const RAPO_VERSION: string | undefined

/**
 * The package's directory; the same from lib/base/, dist/base/ and esm/base/. In a bundle the code lies elsewhere: then
 * some other directory, or '' where the bundler knows no import.meta.url.
 */
export const packageRoot: string = import.meta.url
  ? resolve(dirname(fileURLToPath(import.meta.url)), '../..')
  : ''

export const packageVersion: string = typeof RAPO_VERSION === 'string' ? RAPO_VERSION : readPackage().version

/** Whether packageRoot is rapo's: not so where a bundler copied the code into another file. */
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
