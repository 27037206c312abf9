/** Where the library of the CUDA kernels is looked for, and what is said where CUDA is off, with libraries that are fakes. */
import { execFile } from 'node:child_process'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { packageVersion } from '../../lib/base/package.js'
import { doctor, formatDoctor } from '../../lib/cli/doctor.js'
import type { CudaInfo } from '../../lib/loss/kernels.js'
import { locateKernels } from '../../lib/setup/addons.js'
import { makeTempDir } from '../helpers/fake-policy.js'

const run = promisify(execFile)
const root = fileURLToPath(new URL('../..', import.meta.url))
const dir = realpathSync(makeTempDir())
/** The addon with nothing beside it, and a place where packages are found. */
const addon = path.join(dir, 'addon', 'rapo_kernels.node')
const beside = path.join(dir, 'addon', 'librapo_cuda.so')
const modules = path.join(dir, 'node_modules')
const packageName = 'rapo-cuda-linux-x64'
const packaged = path.join(modules, packageName, 'librapo_cuda.so')
const fake = path.join(dir, 'fake.so')
const foreign = path.join(dir, 'foreign.so')
const partial = path.join(dir, 'partial.so')
const isHere = process.platform === 'linux' && process.arch === 'x64'
const testHere = isHere ? test : test.skip

test.before(async () => {
  mkdirSync(path.dirname(addon))
  copyFileSync(locateKernels(), addon)
  process.env.RAPO_KERNELS_ADDON = addon // where the doctor looks
  if (!isHere) return
  const source = path.join(root, 'test', 'cuda', 'fake.cpp')
  const half = path.join(dir, 'partial.cpp')
  writeFileSync(
    half,
    `namespace rapo::cuda { void elsewhere(); }
     extern "C" __attribute__((visibility("default"))) void rapo_cuda_functions() { rapo::cuda::elsewhere(); }`,
  )
  const compile = (...args: string[]) =>
    run(process.env.CXX ?? 'c++', ['-std=c++17', '-shared', '-fPIC', `-I${root}/native`, ...args])
  await Promise.all([
    compile(source, '-o', fake),
    compile(source, '-DABI=-1', '-o', foreign),
    compile(half, '-o', partial),
  ])
})

/** Looks anew, in a process of its own: with these files beside the addon and as the package, if any. */
async function look(
  files: { beside?: string | Buffer; packaged?: string | Buffer },
  env: Record<string, string> = {},
): Promise<CudaInfo> {
  const place = (to: string, content: string | Buffer | undefined) => {
    if (content === to) return
    rmSync(to, { force: true })
    if (content === undefined) return
    mkdirSync(path.dirname(to), { recursive: true })
    writeFileSync(to, typeof content === 'string' ? readFileSync(content) : content)
  }
  place(beside, files.beside)
  place(packaged, files.packaged)
  const program = `import { kernelsInfo } from ${JSON.stringify(path.join(root, 'lib', 'loss', 'kernels.ts'))}
    console.log(JSON.stringify(kernelsInfo().cuda))`
  return JSON.parse(await runProgram(program, env))
}

/** What a program prints, in a process of its own. */
async function runProgram(program: string, env: Record<string, string>): Promise<string> {
  const args = ['--import', 'tsx', '--input-type=module', '-e', program]
  const { stdout } = await run(process.execPath, args, { cwd: root, env: { ...environment, ...env } })
  return stdout
}

const environment = {
  ...process.env,
  RAPO_CUDA_LIBRARY: '',
  RAPO_KERNELS_ADDON: addon,
  NODE_PATH: modules,
  FAKE_CUDA: '1 0',
}

const placesOf = (cuda: CudaInfo) => cuda.searched.map(({ library, problem }) => [library, problem])

testHere('no library anywhere', async () => {
  const cuda = await look({})
  assert.equal(placesOf(cuda), [[beside, 'not there']])
  if (cuda.available) assert.unreachable()
  else {
    assert.is(cuda.lacks, 'library')
    assert.ok(cuda.reason.includes(`${beside}: not there`), cuda.reason)
    assert.match(cuda.reason, 'the package rapo-cuda-linux-x64 brings it')
  }
})

testHere('beside the addon comes before the package', async () => {
  const cuda = await look({ beside: fake, packaged: fake })
  assert.equal(placesOf(cuda), [[beside, undefined]])
  assert.ok(cuda.available && cuda.devices[0]!.name === 'fake' && cuda.devices.length === 1)
})

testHere('the package, where there is none beside the addon or one that will not do', async () => {
  for (const [content, problem] of [
    [undefined, /^not there$/],
    [foreign, /^belongs to another version of rapo$/],
    [Buffer.from('no library at all'), /file too short|invalid ELF header/],
  ] as const) {
    const cuda = await look({ beside: content!, packaged: fake })
    assert.ok(cuda.available)
    assert.is(cuda.searched.length, 2)
    assert.match(cuda.searched[0]!.problem!, problem)
    assert.equal(placesOf(cuda)[1], [packaged, undefined])
  }
})

testHere('a library that was cut off ends no process: the dynamic linker is not asked', async () => {
  const whole = readFileSync(fake)
  for (const share of [0.1, 0.5, 0.9]) {
    const cuda = await look({ beside: whole.subarray(0, whole.length * share), packaged: fake })
    assert.ok(cuda.available)
    assert.match(cuda.searched[0]!.problem!, /^damaged: it has \d+ bytes of \d+$/)
  }
})

testHere('RAPO_CUDA_LIBRARY names the only one', async () => {
  const named = await look({ beside: foreign, packaged: foreign }, { RAPO_CUDA_LIBRARY: fake })
  assert.equal(placesOf(named), [[fake, undefined]])
  const missing = await look({ beside: fake, packaged: fake }, { RAPO_CUDA_LIBRARY: '/nowhere/x.so' })
  assert.equal(placesOf(missing), [['/nowhere/x.so', 'not there']])
  assert.is(missing.available, false)
})

testHere('a device that the kernels are not compiled for is listed, and refused by name', async () => {
  const cuda = await look({ packaged: fake }, { FAKE_CUDA: '1 0 7' })
  assert.ok(cuda.available)
  const program = `import { deviceMemory } from ${JSON.stringify(path.join(root, 'lib', 'loss', 'cuda.ts'))}
    try { deviceMemory('cuda') } catch (error) { console.log(error.code, error.message) }`
  const stdout = await runProgram(program, { FAKE_CUDA: '1 0 7' })
  assert.match(
    stdout,
    /^ERR_RAPO_DEVICE .*\(fake\) has compute capability 7\.0; the kernels need 8\.0 or newer/,
  )
})

testHere('no driver, and no device', async () => {
  // cudaErrorInsufficientDriver is what the runtime says without a driver too; cudaErrorNoDevice; no error at all.
  for (const [says, lacks, reason] of [
    ['0 35', 'driver', /driver.*: what the runtime says$/],
    ['0 100', 'device', /^there is no CUDA device: what the runtime says$/],
    ['0 0', 'device', /^there is no CUDA device: /],
  ] as const) {
    const cuda = await look({ packaged: fake }, { FAKE_CUDA: says })
    if (cuda.available) assert.unreachable(says)
    else {
      assert.is(cuda.lacks, lacks)
      assert.match(cuda.reason, reason)
      assert.equal(placesOf(cuda)[1], [packaged, undefined])
    }
  }
})

testHere('the doctor tells the same', async () => {
  // Without a PATH it need not wait for the other programs that it asks.
  const text = async (env: Record<string, string>) =>
    formatDoctor(await doctor({ ...environment, PATH: '', RAPO_CACHE: path.join(dir, 'cache'), ...env }))
  await look({})
  const none = await text({})
  assert.match(
    none,
    /^cuda {6}off: there is no library of the CUDA kernels\n +.*librapo_cuda\.so: not there/m,
  )
  assert.match(none, 'the package rapo-cuda-linux-x64 brings the library; it is not installed')
  await look({ beside: fake })
  assert.match(
    await text({ FAKE_CUDA: '0 35' }),
    /^cuda {6}off, no driver: .*\n +.*librapo_cuda\.so: loads$/m,
  )
  assert.match(await text({ FAKE_CUDA: '0 100' }), /^cuda {6}off, no device: /m)
  assert.match(await text({}), /^cuda {6}fake, compute capability 9\.0\n +.*librapo_cuda\.so: loads$/m)
})

testHere('npm run pack:cuda makes a package that is found', async () => {
  const out = path.join(modules, packageName)
  rmSync(out, { recursive: true, force: true })
  const pack = (library: string) =>
    run(process.execPath, ['--import', 'tsx', 'scripts/pack-cuda.ts', '--library', library, '--out', out], {
      cwd: root,
    })
  await pack(fake)
  const manifest = JSON.parse(readFileSync(path.join(out, 'package.json'), 'utf8'))
  assert.equal(
    [manifest.name, manifest.version, manifest.os, manifest.cpu],
    [packageName, packageVersion, ['linux'], ['x64']],
  )
  assert.not('scripts' in manifest)
  const { stdout } = await run('npm', ['pack', '--json', '--dry-run', out], { cwd: dir })
  const files = JSON.parse(stdout)[0].files.map((file: { path: string }) => file.path)
  assert.equal(files.sort(), ['LICENSE', 'README.md', 'librapo_cuda.so', 'package.json'])
  assert.ok((await look({ packaged })).available)

  const refused = async (library: string) => (await pack(library).catch(error => error)).stderr
  assert.match(await refused('/nowhere'), 'is not there')
  assert.match(await refused(addon), 'does not export rapo_cuda_functions')
  assert.match(await refused(partial), 'lacks rapo::cuda::elsewhere()')
  assert.ok(existsSync(packaged)) // what was there is left alone
})

test('the package is a peer in the version of rapo itself', () => {
  const { peerDependencies, peerDependenciesMeta } = JSON.parse(
    readFileSync(path.join(root, 'package.json'), 'utf8'),
  )
  assert.equal(peerDependencies, { [packageName]: packageVersion })
  assert.equal(peerDependenciesMeta, { [packageName]: { optional: true } })
})

test.run()
