// npm run build: compiles lib/ to JavaScript with types, file by file.
//   dist/             CommonJS. index.mjs re-exports index.js: `import 'rapo'` and `require('rapo')` give the same objects, so
//                     that a process has one RapoError class
//   esm/              ES modules for bundlers only, which leave out what an application does not use
import { execFileSync } from 'node:child_process'
import { chmodSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { writeDist, writeEsm } from './dist.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const dist = join(root, 'dist')

await writeEsm()
await writeDist()
execFileSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', 'tsconfig.build.json'], {
  cwd: root,
  stdio: 'inherit',
})
for (const entry of ['index', 'kernels', 'math']) {
  const names = Object.keys(createRequire(import.meta.url)(join(dist, `${entry}.js`)))
  writeFileSync(
    join(dist, `${entry}.mjs`),
    `import cjs from './${entry}.js'\nexport const {\n${names.map(name => `  ${name},\n`).join('')}} = cjs\n`,
  )
  writeFileSync(join(dist, `${entry}.d.mts`), `export * from './${entry}.js'\n`)
}
chmodSync(join(dist, 'cli', 'cli.js'), 0o755)
