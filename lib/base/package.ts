/** Where this package lies, and its version. */
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

/** The package's directory; the same from lib/setup/ and from dist/setup/. */
export const packageRoot = resolve(fileURLToPath(new URL('../..', import.meta.url)))

export const packageVersion: string = JSON.parse(
  readFileSync(join(packageRoot, 'package.json'), 'utf8'),
).version
