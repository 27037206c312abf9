// Bundles test/helpers/modules-check.ts to one file that Node.js runs without tsx.
import { join } from 'node:path'
import { build } from 'esbuild'
import { root } from './bootstrap.mjs'

/** The path of the program, beside node_modules, in which it finds jiti. */
export async function buildModulesCheck() {
  const outfile = join(root, 'build', 'modules-check.mjs')
  await build({
    entryPoints: [join(root, 'test', 'helpers', 'modules-check.ts')],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    external: ['jiti'],
    define: { RAPO_VERSION: '"0"' },
    logLevel: 'warning',
  })
  return outfile
}
