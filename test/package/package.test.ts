/**
 * What `npm install rapo` gives: the package is packed, installed from a registry on this machine into an empty project
 * in a root directory with nothing but Node.js and npm, and used there from ES modules, CommonJS and TypeScript.
 */
import { execFile, execFileSync, spawnSync } from 'node:child_process'
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { nodeFileTrace } from '@vercel/nft'
import * as esbuild from 'esbuild'
import ts from 'typescript'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
// @ts-expect-error: no types
import { hostTarget, prebuild, prebuildPath, recordPath, targets } from '../../scripts/prebuilds.mjs'
import { x86Isas } from '../helpers/machine.js'
import { serveRegistry } from '../helpers/registry.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const run = promisify(execFile)
const node = realpathSync(process.execPath)
const bin = (name: string) => path.join(root, 'node_modules', '.bin', name)
/** TypeScript 5 and 7. By their packages: both may want to be node_modules/.bin/tsc. */
const compilers = ['typescript/bin/tsc', '@typescript/native-preview/bin/tsgo'] as const
const compile = (compiler: (typeof compilers)[number], args: readonly string[], cwd: string) =>
  run(node, [path.join(root, 'node_modules', compiler), ...args], { cwd })

/** The limit of a package without the CUDA library. */
const MAX_BYTES = 15e6

/** Takes a process into a root directory. Not every Linux lets a user do so, and macOS has no such program. */
const enterRoot = (dir: string) => [
  ...['--root', dir],
  ...(process.getuid?.() === 0 ? [] : ['--map-root-user']),
]
const probe = spawnSync('unshare', [...enterRoot('/'), node, '--version'], { encoding: 'utf8' })
const testInRoot = probe.status === 0 ? test : test.skip
if (probe.status !== 0) {
  const why = probe.error?.message ?? probe.stderr.trim()
  console.log(`skipped, what uses the package in a root directory of its own: unshare fails (${why})`)
}

interface Packed {
  readonly filename: string
  readonly size: number
  readonly files: readonly { readonly path: string }[]
}

let temporary: string
let packed: Packed
let tarball: string
/** The root directory that the package is installed in, and the project within it. */
let place: string
let project: string

test.before(async () => {
  temporary = realpathSync(mkdtempSync(path.join(tmpdir(), 'rapo-package-')))
  place = path.join(temporary, 'root')
  project = path.join(place, 'project')
  await prebuild([hostTarget()])
  const { stdout } = await run('npm', ['pack', '--json', '--pack-destination', temporary], { cwd: root })
  // The build that npm runs first writes to the same stream.
  packed = JSON.parse(stdout.slice(stdout.indexOf('[\n')))[0]
  tarball = path.join(temporary, packed.filename)
})

test.after(() => rmSync(temporary, { recursive: true, force: true }))

test('the tarball holds what it should and no more', () => {
  const list = path.join(root, 'test', 'golden', 'package-files.txt')
  const files = packed.files.map(file => file.path)
  // Which prebuilds there are depends on what was built here; test/prebuilds.ts looks at all of them.
  const prebuilds = Object.keys(targets).flatMap(target => [prebuildPath(target), recordPath(target)])
  const found = files.filter(file => !prebuilds.includes(file)).sort()
  if (process.env.RAPO_UPDATE === '1') writeFileSync(list, `${found.join('\n')}\n`)
  const expected = readFileSync(list, 'utf8').trimEnd().split('\n')
  const advice =
    'if this is meant, RAPO_UPDATE=1 npm test -- package writes test/golden/package-files.txt anew'
  assert.equal(found, expected, advice)
  assert.ok(files.includes(prebuildPath(hostTarget())))
})

test('the tarball is small, and nothing in it runs at installation', () => {
  console.log(`${packed.filename}: ${(packed.size / 1e6).toFixed(2)} MB`)
  assert.ok(packed.size < MAX_BYTES, `${packed.size} bytes`)
  const { scripts } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  // Of prepare, which it does not run, npm warns whoever installs a tarball.
  for (const name of ['preinstall', 'install', 'postinstall', 'prepare']) assert.not(name in scripts, name)
  // npm runs node-gyp for it unasked.
  assert.not(packed.files.some(file => file.path === 'binding.gyp'))
})

test('README leads to what the package has, or says that it is in the repository only', () => {
  const readme = readFileSync(path.join(root, 'README.md'), 'utf8')
  const [, named = ''] = /examples\/\. ([^;]*) are in the\s+repository only/.exec(readme) ?? []
  const elsewhere = named.split(/,\s|\sand\s/)
  assert.is(elsewhere.length, 5)
  const packedFiles = packed.files.map(file => file.path)
  const links = [...readme.matchAll(/\]\(([^)#:]+)[^):]*\)/g)].map(match => match[1]!)
  assert.ok(links.length > 20)
  for (const link of links) {
    const isThere = packedFiles.some(file => file === link || file.startsWith(link))
    assert.is(isThere, !elsewhere.some(place => link.startsWith(place)), link)
  }
})

test('publint and attw find nothing', async () => {
  const lint = await run(bin('publint'), ['run', tarball, '--strict', '--level', 'suggestion'])
  assert.match(lint.stdout, 'All good!')
  const types = await run(bin('attw'), [tarball, '--format', 'ascii', '--no-emoji'])
  assert.match(types.stdout, 'No problems found')
})

testInRoot('npm installs it where there is neither compiler nor Python nor shell', async () => {
  await makeRoot()
  const registry = await serveRegistry(root, path.join(temporary, 'registry'))
  try {
    mkdirSync(project, { recursive: true })
    writeFileSync(path.join(project, 'package.json'), '{ "private": true }\n')
    copyFileSync(tarball, path.join(place, packed.filename))
    await inRoot(
      '/npm/bin/npm-cli.js',
      'install',
      `/${packed.filename}`,
      '--registry',
      registry.url,
      '--no-audit',
      '--no-fund',
    )
  } finally {
    registry.close()
  }
  const installed = path.join(project, 'node_modules', 'rapo')
  for (const { path: file } of packed.files) assert.ok(existsSync(path.join(installed, file)), file)
})

testInRoot('the package of the CUDA kernels is found beside it', async () => {
  const found = path.join(project, 'node_modules', 'rapo-cuda-linux-x64')
  mkdirSync(found)
  writeFileSync(path.join(found, 'package.json'), '{ "name": "rapo-cuda-linux-x64", "version": "0.0.0" }')
  writeFileSync(path.join(found, 'librapo_cuda.so'), 'none')
  writeFileSync(
    path.join(project, 'cuda.mjs'),
    `import { kernelsInfo } from 'rapo'
     console.log(kernelsInfo().cuda.searched.map(({ library }) => library).join())`,
  )
  const places = (await inRoot('/project/cuda.mjs')).trim().split(',')
  rmSync(found, { recursive: true })
  if (process.platform !== 'linux' || process.arch !== 'x64') return
  assert.equal(places, [
    `/project/node_modules/rapo/prebuilds/linux-x64/librapo_cuda.so`,
    '/project/node_modules/rapo-cuda-linux-x64/librapo_cuda.so',
  ])
})

testInRoot("README's example runs there, as ES module and as CommonJS", async () => {
  const readme = readFileSync(path.join(root, 'README.md'), 'utf8')
  const example = /```ts\n(.*?)```/s.exec(readme)?.[1] ?? ''
  assert.match(example, "from 'rapo'")
  writeFileSync(path.join(project, 'example.mjs'), example)
  const required = example.replace(/import (.*) from ('rapo')/, 'const $1 = require($2)')
  assert.match(required, 'require(')
  writeFileSync(path.join(project, 'example.cjs'), required)
  const outputs = [await inRoot('/project/example.mjs'), await inRoot('/project/example.cjs')]
  // A number, the entropy, six gradients. Their values are what readme.test.ts is about.
  for (const output of outputs) assert.match(output, /^-?0\.\d+ \d\.\d+ Float32Array\(6\) \[/)
  assert.is(outputs[0], outputs[1])
})

testInRoot('both kinds of import give the same objects; the command line too', async () => {
  writeFileSync(
    path.join(project, 'same.mjs'),
    `import assert from 'node:assert'
     import { createRequire } from 'node:module'
     import * as imported from 'rapo'
     const required = createRequire(import.meta.url)('rapo')
     assert.deepStrictEqual(Object.keys(imported).sort(), Object.keys(required).sort())
     for (const name of Object.keys(required)) assert.strictEqual(imported[name], required[name], name)
     assert.throws(() => imported.policyLoss({}, required.rapo()), required.RapoError)
     const batch = { vocabSize: 0, logits: new Float32Array(0), tokenIds: new Int32Array(0) }
     assert.throws(() => required.gatherLogprobs(batch), imported.RapoError)
     console.log(imported.kernelsInfo().isas.join())`,
  )
  const isas = (await inRoot('/project/same.mjs')).trim()
  if (process.arch === 'x64') assert.is(isas, x86Isas().join())
  else assert.is(isas.split(',').at(-1), 'portable')
  const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  assert.is(await inRoot('/project/node_modules/rapo/dist/cli/cli.js', '--version'), `${version}\n`)
})

testInRoot('its types are there for ES modules, CommonJS and bundlers, beside those of Node.js', async () => {
  const code = `import { type LossBatch, policyLoss, rapo } from 'rapo'
    const batch: LossBatch<Float32Array> = {
      vocabSize: 1,
      logits: new Float32Array(1),
      tokenIds: new Int32Array(1),
      tokenWeights: new Float32Array(1),
      advantages: new Float32Array(1),
    }
    export const gradient: Float32Array = policyLoss(batch, rapo({ klCoef: 0.1 })).gradLogits
    // @ts-expect-error: there is none
    export const none: Float32Array = policyLoss(batch, rapo(), { grad: 'none' }).gradLogits
    // @ts-expect-error: no such field
    rapo({ klCeof: 0.1 })\n`
  const files = ['esm.mts', 'cjs.cts', 'bundled.ts']
  for (const file of files) writeFileSync(path.join(project, file), code)
  const typeRoots = path.join(root, 'node_modules', '@types')
  const strict = ['--noEmit', '--strict', '--target', 'es2022', '--types', 'node', '--typeRoots', typeRoots]
  const kinds = [
    ['--module', 'node16', ...files.slice(0, 2)],
    ['--module', 'esnext', '--moduleResolution', 'bundler', files[2]!],
  ]
  for (const kind of kinds) {
    const { code, stdout } = await compile(compilers[0], [...strict, ...kind], project).catch(error => error)
    assert.equal([code, stdout], [undefined, ''])
  }
})

test('its types need no others: neither @types/node nor skipLibCheck, for TypeScript 5 and 7', async () => {
  const code = `import { type Config, loadPolicy, type Policy, readProblems, train } from 'rapo'
    import { DeviceArray, type LossBatch, policyLoss, rapo } from 'rapo/kernels'
    export const policy: Policy = await loadPolicy('dir')
    import { compareAnswers } from 'rapo/math'
    export { compareAnswers, DeviceArray, policyLoss, rapo, readProblems, train }
    export type { Config, LossBatch }\n`
  const dir = unpack('types')
  writeFileSync(path.join(dir, 'all.mts'), code)
  writeFileSync(path.join(dir, 'wrong.mts'), "import { rapo } from 'rapo'\nrapo({ klCeof: 1 })\n")
  const compilerOptions = { strict: true, skipLibCheck: false, noEmit: true, target: 'es2022', types: [] }
  const configure = (module: string, file: string) => {
    const config = { compilerOptions: { ...compilerOptions, module }, files: [file] }
    writeFileSync(path.join(dir, 'tsconfig.json'), JSON.stringify(config))
  }
  for (const module of ['node16', 'nodenext', 'preserve']) {
    configure(module, 'all.mts')
    for (const compiler of compilers) {
      const { code, stdout } = await compile(compiler, ['-p', dir], dir).catch(error => error)
      assert.equal([code, stdout], [undefined, ''], `${compiler}, module ${module}`)
    }
  }
  configure('nodenext', 'wrong.mts')
  for (const [i, compiler] of compilers.entries()) {
    const { stdout: version } = await compile(compiler, ['--version'], dir)
    assert.match(version, [/^Version 5\./, /^Version 7\./][i]!)
    const { stdout } = await compile(compiler, ['-p', dir], dir).catch(error => error)
    assert.match(stdout, /wrong\.mts.*error TS\d+: .*'klCeof'/, compiler)
  }
})

/** What a program in the package's scope prints, as JSON. */
async function evaluate(program: string) {
  const { stdout } = await run(node, ['--input-type=commonjs', '-e', program], { cwd: root })
  return JSON.parse(stdout)
}

test('importing it leaves nothing in the process, and loads little', async () => {
  for (const [entry, most, packages] of [
    ['rapo/kernels', 10, []],
    ['rapo', 65, ['pure-rand']],
  ] as const) {
    const left = await evaluate(`
      const fs = require('node:fs')
      const look = () => ({
        listeners: process.eventNames().flatMap(name => Array(process.listenerCount(name)).fill(String(name))),
        process: [process.emit, process.reallyExit, process.cwd, process.chdir, process.on],
        fs: Object.values(fs).filter(value => typeof value === 'function'),
        globals: Reflect.ownKeys(globalThis).map(String),
        symbols: [fs, process].flatMap(object => Object.getOwnPropertySymbols(object).map(String)),
      })
      const before = look()
      require('node:module').createRequire(process.cwd() + '/x.js')('${entry}')
      const after = look()
      const same = (a, b) => a.length === b.length && a.every((value, i) => value === b[i])
      const modules = Object.keys(require.cache)
      const packages = modules.map(file => /node_modules.((?:@[^/\\\\]+.)?[^/\\\\]+)/.exec(file)?.[1]).filter(Boolean)
      console.log(JSON.stringify({
        changed: Object.keys(before).filter(name => !same(before[name], after[name])),
        modules: modules.length,
        packages: [...new Set(packages)].sort(),
      }))`)
    console.log(`${entry}: ${left.modules} modules`)
    assert.equal(left.changed, [], entry)
    assert.equal(left.packages, packages, entry)
    assert.ok(left.modules > 0 && left.modules <= most, `${entry} loads ${left.modules} modules`)
  }
})

test('what is loaded late works when it is called', async () => {
  const { code, message } = await evaluate(`
    const { parseConfig } = require('rapo')
    try { parseConfig({}) } catch ({ code, message }) { console.log(JSON.stringify({ code, message })) }`)
  assert.is(code, 'ERR_RAPO_CONFIG')
  assert.match(message, 'model.dir is missing')
})

test('docs/api, the types and the exports name the same things', async () => {
  const docs = readFileSync(path.join(root, 'docs', 'api', 'README.md'), 'utf8')
  const section = (title: string) =>
    [...(docs.split(`\n## ${title}\n`)[1]?.split('\n## ')[0] ?? '').matchAll(/^### (\w+)/gm)].map(
      match => match[1]!,
    )
  const documented = ['Classes', 'Variables', 'Functions'].flatMap(section)
  const documentedTypes = ['Interfaces', 'Type Aliases'].flatMap(section)
  const file = path.join(root, 'dist', 'index.d.ts')
  const program = ts.createProgram([file], { module: ts.ModuleKind.NodeNext, types: [] })
  const checker = program.getTypeChecker()
  const symbols = checker.getExportsOfModule(checker.getSymbolAtLocation(program.getSourceFile(file)!)!)
  const isValue = (symbol: ts.Symbol) => {
    const flags = symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol).flags : symbol.flags
    return (
      Boolean(flags & ts.SymbolFlags.Value) &&
      !ts.isTypeOnlyImportOrExportDeclaration(symbol.declarations![0]!)
    )
  }
  const [values, types] = [true, false].map(wanted =>
    symbols
      .filter(symbol => isValue(symbol) === wanted)
      .map(({ name }) => name)
      .sort(),
  )
  const { all, kernels, math, same, imported } = await evaluate(`(async () => {
    const [all, kernels, math] = ['rapo', 'rapo/kernels', 'rapo/math'].map(name => require(name))
    console.log(JSON.stringify({
      all: Object.keys(all).sort(),
      kernels: Object.keys(kernels),
      math: Object.keys(math),
      same: ['RapoError', 'DeviceArray', 'policyLoss'].filter(name => kernels[name] === all[name]),
      // Jest's and vitest's bridges from CommonJS find names as Node does: by reading the text.
      imported: Object.keys(await import('./dist/index.js')).filter(name => !/^(default|module.exports)$/.test(name)).sort(),
    }))
  })()`)
  assert.equal(documented.sort(), all)
  assert.equal(values, all)
  assert.equal(documentedTypes.sort(), types)
  for (const name of [...kernels, ...math])
    assert.ok(all.includes(name), `a subpath has ${name}, rapo has not`)
  assert.is(same.length, 3, 'rapo/kernels has the very classes of rapo')
  assert.equal(
    imported.filter((name: string) => name !== '__esModule'),
    all,
  )
  for (const name of ['rolloutGroups', 'createTemplate', 'loadVerifier', 'splitEvenly', 'learningRateAt']) {
    assert.ok(all.includes(name), `README says that all the parts of the loop are exports: ${name}`)
  }
})

test('esbuild bundles what needs no addon; where one is needed, the error says how', async () => {
  const dir = unpack('bundle')
  const elsewhere = path.join(temporary, 'elsewhere')
  mkdirSync(elsewhere)
  const bundle = async (format: 'cjs' | 'esm', code: string, external: string[] = []) => {
    const out = path.join(external.length ? dir : elsewhere, `app.${format === 'cjs' ? 'cjs' : 'mjs'}`)
    await esbuild.build({
      stdin: { contents: code, resolveDir: dir },
      outfile: out,
      ...{ bundle: true, platform: 'node', format, external, logLevel: 'silent', minifySyntax: true },
    })
    const env = { PATH: process.env.PATH }
    return { out, said: (await run(node, [out], { cwd: elsewhere, env })).stdout }
  }
  const calls = `import { RapoError, kernelsInfo } from 'rapo'
    try { console.log(kernelsInfo().isa) } catch (error) { console.log(error instanceof RapoError, error.code, error.message) }`
  for (const format of ['cjs', 'esm'] as const) {
    const pure = await bundle(
      format,
      `import { groupAdvantages, passAtK, verifyMath } from 'rapo'
       console.log(verifyMath('\\\\boxed{21}', '21').reward, passAtK(4, 1, 2), groupAdvantages([1, 0], 2).length)`,
    )
    assert.is(pure.said, '1 0.5 2\n', format)
    const text = readFileSync(pure.out, 'utf8')
    assert.ok(
      text.length < 300_000 && !text.includes('createRequire'),
      `${text.length} bytes: more than is used`,
    )
    const { said } = await bundle(format, calls)
    assert.match(
      said,
      /^true ERR_RAPO_SETUP the kernels addon .* mark rapo external \(esbuild: --external:rapo;/,
      format,
    )
    assert.match((await bundle(format, calls, ['rapo'])).said, /^[a-z0-9]+\n$/, format)
  }
})

test('what @vercel/nft traces runs elsewhere', async () => {
  const dir = unpack('trace', ['node-gyp-build', 'pure-rand'])
  for (const entry of ['rapo', 'rapo/kernels']) {
    writeFileSync(
      path.join(dir, 'app.mjs'),
      `import { kernelsInfo } from '${entry}'\nconsole.log(kernelsInfo().isa)\n`,
    )
    const { fileList } = await nodeFileTrace([path.join(dir, 'app.mjs')], { base: dir })
    assert.ok(fileList.has(path.join('node_modules', 'rapo', prebuildPath(hostTarget()))), entry)
    const deployed = path.join(temporary, 'deployed')
    rmSync(deployed, { recursive: true, force: true })
    for (const file of fileList) cpSync(path.join(dir, file), path.join(deployed, file))
    const { stdout } = await run(node, ['app.mjs'], { cwd: deployed, env: { PATH: process.env.PATH } })
    assert.match(stdout, /^[a-z0-9]+\n$/, entry)
  }
})

/** An empty project with the package in node_modules, and its dependencies: links to those here, and copies of some. */
function unpack(name: string, copied: string[] = []): string {
  const dir = path.join(temporary, name)
  const modules = path.join(dir, 'node_modules')
  mkdirSync(path.join(modules, 'rapo'), { recursive: true })
  execFileSync('tar', ['-xzf', tarball, '-C', path.join(modules, 'rapo'), '--strip-components=1'])
  const { dependencies } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  for (const dependency of Object.keys(dependencies)) {
    const from = path.join(root, 'node_modules', dependency)
    const to = path.join(modules, dependency)
    mkdirSync(path.dirname(to), { recursive: true })
    if (copied.includes(dependency)) cpSync(from, to, { recursive: true })
    else symlinkSync(from, to, 'junction')
  }
  return dir
}

/** A root directory with the node that runs this, its libraries, and npm. */
async function makeRoot(): Promise<void> {
  const { stdout } = await run('ldd', [node])
  for (const [file] of stdout.matchAll(/\/\S+/g)) {
    mkdirSync(path.join(place, path.dirname(file)), { recursive: true })
    copyFileSync(file, path.join(place, file))
  }
  mkdirSync(path.join(place, 'tmp'))
  copyFileSync(node, path.join(place, 'node'))
  cpSync(await npmDirectory(), path.join(place, 'npm'), { recursive: true })
}

/** Where npm lies: the one that runs this, else the one among the global packages. */
async function npmDirectory(): Promise<string> {
  const program = process.env.npm_execpath ?? ''
  if (path.basename(program) === 'npm-cli.js') return path.dirname(path.dirname(realpathSync(program)))
  return path.join((await run('npm', ['root', '-g'])).stdout.trim(), 'npm')
}

/** Runs node in that root, which it cannot leave, with an empty environment; returns what it wrote. */
async function inRoot(...args: string[]): Promise<string> {
  const { stdout } = await run('unshare', [...enterRoot(place), '--wd', '/project', '/node', ...args], {
    env: { PATH: '/usr/bin:/bin', HOME: '/tmp' },
  })
  return stdout
}

test.run()
