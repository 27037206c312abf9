// npm run build: compiles lib/ to JavaScript with types, file by file.
//   dist/             CommonJS. index.mjs re-exports index.js: `import 'rapo'` and `require('rapo')` give the same objects, so
//                     that a process has one RapoError class
//   esm/              ES modules for bundlers only, which leave out what an application does not use
import { execFileSync } from 'node:child_process'
import { chmodSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const dist = join(root, 'dist')
const entries = ['index', 'kernels', 'math']
const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
const define = { RAPO_VERSION: JSON.stringify(version) }

for (const dir of ['dist', 'esm']) rmSync(join(root, dir), { recursive: true, force: true })
const sources = readdirSync(join(root, 'lib'), { recursive: true }).filter(file => file.endsWith('.ts'))
const options = {
  absWorkingDir: root,
  entryPoints: sources.map(file => join('lib', file)),
  outbase: 'lib',
  platform: 'node',
  target: 'node20',
  logLevel: 'warning',
}
// The commands are not for bundles.
const parts = options.entryPoints.filter(file => !/^lib.(bench|cli|report)\b/.test(file))
await build({ ...options, entryPoints: parts, outdir: 'esm', format: 'esm', define })
writeFileSync(join(root, 'esm', 'package.json'), '{ "type": "module", "sideEffects": false }\n')
await build({
  ...options,
  outdir: 'dist',
  format: 'cjs',
  define: { ...define, 'import.meta.dirname': '__dirname' },
  plugins: [{ name: 'commonjs', setup: ({ onLoad }) => onLoad({ filter: /\.ts$/ }, load) }],
})
writeFileSync(join(dist, 'package.json'), '{ "type": "commonjs" }\n')
execFileSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', 'tsconfig.build.json'], {
  cwd: root,
  stdio: 'inherit',
})
for (const entry of entries) {
  const names = Object.keys(createRequire(import.meta.url)(join(dist, `${entry}.js`)))
  writeFileSync(
    join(dist, `${entry}.mjs`),
    `import cjs from './${entry}.js'\nexport const {\n${names.map(name => `  ${name},\n`).join('')}} = cjs\n`,
  )
  writeFileSync(join(dist, `${entry}.d.mts`), `export * from './${entry}.js'\n`)
}
chmodSync(join(dist, 'cli', 'cli.js'), 0o755)

/** Adapts a source to CommonJS, which has a `require`. A namespace is loaded when a part of it is first used. */
function load({ path }) {
  const contents = readFileSync(path, 'utf8')
    .replace(/^ *const require = createRequire\(.*\n/m, '')
    // A bundler may put CommonJS code into an ES module, which has no __filename.
    .replaceAll(
      'import.meta.url',
      "(typeof __filename === 'string' ? require('node:url').pathToFileURL(__filename).href : '')",
    )
    .replace(
      /^import \* as (\w+) from ('\.[^']*')$/gm,
      'const $1 = new Proxy({}, { get: (_, name) => require($2)[name] })',
    )
  return { contents, loader: 'ts' }
}
