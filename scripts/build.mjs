// npm run build: lib/ as CommonJS in dist/, with its types, and an ES module that hands its exports on. `import 'rapo'` and
// `require('rapo')` give the same objects, so that there is one RapoError class in a process, whoever loaded what.
import { execFileSync } from 'node:child_process'
import { chmodSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const dist = join(root, 'dist')

rmSync(dist, { recursive: true, force: true })
const sources = readdirSync(join(root, 'lib'), { recursive: true }).filter(file => file.endsWith('.ts'))
await build({
  absWorkingDir: root,
  entryPoints: sources.map(file => join('lib', file)),
  outbase: 'lib',
  outdir: 'dist',
  format: 'cjs',
  platform: 'node',
  target: 'node20',
  define: { 'import.meta.url': 'importMetaUrl' },
  banner: { js: "'use strict'; const importMetaUrl = require('node:url').pathToFileURL(__filename).href" },
  logLevel: 'warning',
})
writeFileSync(join(dist, 'package.json'), '{ "type": "commonjs" }\n')
execFileSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', 'tsconfig.build.json'], {
  cwd: root,
  stdio: 'inherit',
})
const names = Object.keys(createRequire(import.meta.url)(join(dist, 'index.js')))
writeFileSync(
  join(dist, 'index.mjs'),
  `import cjs from './index.js'\nexport const {\n${names.map(name => `  ${name},\n`).join('')}} = cjs\n`,
)
writeFileSync(join(dist, 'index.d.mts'), "export * from './index.js'\n")
chmodSync(join(dist, 'cli', 'cli.js'), 0o755)
