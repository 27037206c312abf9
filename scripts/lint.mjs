// npm run lint: checks TypeScript (Biome, types) and C++ (clang-format, clang-tidy), and that no file contains paths of one
// machine. --write formats instead, and applies Biome's safe fixes.
import { execFileSync, spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, homedir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { bootstrap, load, root } from './bootstrap.mjs'

const CLANG_FORMAT = '23.1.5'
const CLANG_TIDY = '23.1.4'

const write = process.argv.includes('--write')
// Formatting needs no addon; clang-tidy reads libtorch's headers.
await bootstrap({ addons: !write })
const [{ cacheDir, findEngine }, { inspectLibtorch }, { work }, { makeVenv }] = await Promise.all(
  ['cache.ts', 'inspect.ts', 'process.ts', 'venv.ts'].map(load),
)

const files = execFileSync('git', ['ls-files', '-co', '--exclude-standard'], { cwd: root, encoding: 'utf8' })
  .split('\n')
  .filter(file => file && existsSync(join(root, file)))
const cpp = files.filter(file => /^(native|bindings)\/.*\.(h|cpp|cu)$/.test(file))
const tools = await clangTools()
const failed = []

if (write) {
  await check('biome', () => node('@biomejs/biome/bin/biome', ['check', '--write']))
  await check('clang-format', () => run(tools.format, ['-i', ...cpp]))
} else {
  await check('biome', () => node('@biomejs/biome/bin/biome', ['check', '--error-on-warnings']))
  await check('types', () => node('typescript/bin/tsc', ['--noEmit']))
  await check('docs/api', () => apiDocs())
  await check('machine', () => namesThisMachine(files))
  await check('clang-format', () => unformatted(cpp))
  await check('clang-tidy', () => clangTidy(cpp.filter(file => file.endsWith('.cpp'))))
}
console.log(failed.length ? `lint: ${failed.join(', ')} failed` : 'lint: all clean')
process.exitCode = failed.length ? 1 : 0

/** A check returns the faults as a text, which is empty if there are none. */
async function check(name, body) {
  const start = performance.now()
  const problems = await body()
  if (problems) {
    console.log(problems.trimEnd())
    failed.push(name)
  }
  console.log(
    `${name}: ${problems ? 'FAILED' : 'clean'} (${((performance.now() - start) / 1000).toFixed(1)} s)`,
  )
}

/** Paths and addresses that are valid on one machine only, and credentials. */
function namesThisMachine(names) {
  const literals = [root, dirname(root), homedir()].filter(
    path => path.split('/').length > 1 && path.length > 3,
  )
  const patterns = [
    /\/(home|Users)\/[\w.-]+\//,
    /\/root\//,
    /\/tmp\/\w/,
    /https?:\/\/[^\s"']*(registry|pypi|artifactory|verdaccio)[^\s"']*/,
    /_auth[T]oken/,
    /"resolve[d]": /,
  ]
  const found = []
  for (const name of names) {
    const text = readFileSync(join(root, name), 'utf8')
    if (text.includes('\0')) continue
    for (const [index, line] of text.split('\n').entries()) {
      const hit =
        literals.find(literal => line.includes(`${literal}/`)) ?? patterns.find(pattern => pattern.test(line))
      if (hit) found.push(`${name}:${index + 1}: matches ${hit}: ${line.trim().slice(0, 100)}`)
    }
  }
  return found.join('\n')
}

/** docs/api/ must match the types, and every public name must have a docstring (typedoc.json lists the kinds). */
async function apiDocs() {
  const out = join(cacheDir(), 'lint', 'api')
  const problems = await node('typedoc/bin/typedoc', ['--out', out, '--logLevel', 'Warn'])
  if (problems) return problems
  const read = dir => readFileSync(join(dir, 'README.md'), 'utf8')
  return read(out) === read(join(root, 'docs', 'api'))
    ? ''
    : 'docs/api/ is not up to date: npm run docs writes it'
}

async function unformatted(sources) {
  const problems = await run(tools.format, ['--dry-run', '-Werror', ...sources])
  const names = sources.filter(file => problems.includes(`${file}:`))
  return names.length ? `not formatted (npm run format does it): ${names.join(', ')}` : problems
}

async function clangTidy(sources) {
  const commands = await compileCommands()
  const queue = sources.filter(file => commands.has(join(root, file)))
  const skipped = sources.filter(file => !queue.includes(file))
  if (skipped.length) console.log(`not compiled on this machine, so not checked: ${skipped.join(', ')}`)
  const database = join(cacheDir(), 'lint')
  writeFileSync(join(database, 'compile_commands.json'), JSON.stringify([...commands.values()]))
  const problems = []
  const worker = async () => {
    for (let file = queue.shift(); file; file = queue.shift()) {
      problems.push(await run(tools.tidy, ['--quiet', '-p', database, file]))
    }
  }
  await Promise.all(Array.from({ length: availableParallelism() }, worker))
  return problems.join('')
}

/**
 * One compile command per file. A file compiled for several instruction sets keeps its last command, that of the widest set.
 */
async function compileCommands() {
  const tree = join(cacheDir(), 'lint', 'tree')
  const libtorch = inspectLibtorch(findEngine().marker.libtorch.dir)
  const log = join(cacheDir(), 'lint', 'cmake.log')
  rmSync(tree, { recursive: true, force: true })
  writeFileSync(log, '')
  const args = ['-S', root, '-B', tree, '-DRAPO_ENGINE=ON', `-DTorch_DIR=${libtorch.cmakeDir}`]
  await work('configuring for clang-tidy', 'cmake', args, { env: process.env, log })
  const entries = JSON.parse(readFileSync(join(tree, 'compile_commands.json'), 'utf8'))
  return new Map(entries.map(entry => [entry.file, entry]))
}

/** clang-format and clang-tidy in fixed versions, from their Python wheels. */
async function clangTools() {
  const dir = join(cacheDir(), 'lint', `clang-${CLANG_FORMAT}-${CLANG_TIDY}`)
  const tools = { format: join(dir, 'bin', 'clang-format'), tidy: join(dir, 'bin', 'clang-tidy') }
  if (existsSync(join(dir, 'rapo-done'))) return tools
  console.log(`installing clang-format ${CLANG_FORMAT} and clang-tidy ${CLANG_TIDY} into ${dir}`)
  rmSync(dir, { recursive: true, force: true })
  mkdirSync(dirname(dir), { recursive: true })
  const log = `${dir}.log`
  writeFileSync(log, '')
  const install = await makeVenv(dir, { env: process.env, log })
  await install('clang-format and clang-tidy', [`clang-format==${CLANG_FORMAT}`, `clang-tidy==${CLANG_TIDY}`])
  writeFileSync(join(dir, 'rapo-done'), '')
  return tools
}

function node(script, args) {
  return run(process.execPath, [join(root, 'node_modules', script), ...args])
}

/** The output of a command that failed; empty if it succeeded. */
function run(command, args) {
  return new Promise(resolve => {
    const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', text => {
        output += text
      })
    }
    child.on('error', error => resolve(`${command}: ${error.message}\n`))
    child.on('close', code =>
      resolve(code === 0 ? '' : output || `${basename(command)} ended with ${code}\n`),
    )
  })
}
