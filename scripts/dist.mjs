// The JavaScript of lib/, file by file: dist/ in CommonJS and esm/ for bundlers. A file is replaced in one step, and only where
// its content changes, so that programs which run from dist/ meanwhile find whole files.
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
const define = { RAPO_VERSION: JSON.stringify(version) }
const sources = () => readdirSync(join(root, 'lib'), { recursive: true }).filter(file => file.endsWith('.ts'))
const options = {
  absWorkingDir: root,
  outbase: 'lib',
  platform: 'node',
  target: 'node20',
  logLevel: 'warning',
  write: false,
}

/** CommonJS, for `require('rapo')`, `import 'rapo'` and the commands. */
export async function writeDist() {
  const result = await build({
    ...options,
    entryPoints: sources().map(file => join('lib', file)),
    outdir: 'dist',
    format: 'cjs',
    define: { ...define, 'import.meta.dirname': '__dirname' },
    plugins: [{ name: 'commonjs', setup: ({ onLoad }) => onLoad({ filter: /\.ts$/ }, load) }],
  })
  writeOutput('dist', result, '{ "type": "commonjs" }\n')
}

/** ES modules, without the commands, which are not for bundles. */
export async function writeEsm() {
  const parts = sources().filter(file => !/^(bench|cli|report)\b/.test(file))
  const result = await build({
    ...options,
    entryPoints: parts.map(file => join('lib', file)),
    outdir: 'esm',
    format: 'esm',
    define,
  })
  writeOutput('esm', result, '{ "type": "module", "sideEffects": false }\n')
}

/** Writes what changed, and removes the files of sources that are gone. */
function writeOutput(name, { outputFiles }, description) {
  const dir = join(root, name)
  for (const { path, contents } of outputFiles) replaceFile(path, contents)
  replaceFile(join(dir, 'package.json'), Buffer.from(description))
  const stem = path => path.replace(/\.\w+$/, '').replace(/\.d$/, '')
  const known = new Set(['package', ...outputFiles.map(({ path }) => stem(relative(dir, path)))])
  for (const entry of readdirSync(dir, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath ?? entry.path, entry.name)
    if (entry.isFile() && !known.has(stem(relative(dir, path)))) rmSync(path, { force: true })
  }
}

function replaceFile(path, contents) {
  try {
    if (readFileSync(path).equals(contents)) return
  } catch {} // there is no such file yet
  mkdirSync(dirname(path), { recursive: true })
  // Outside the output: another process that builds would remove the part there, and a killed one would leave it in the package.
  const part = join(root, 'build', `${process.pid}.part`)
  mkdirSync(dirname(part), { recursive: true })
  writeFileSync(part, contents)
  renameSync(part, path)
}

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
