// npm run prebuilds [-- target …]: compiles the kernels addon for every platform into prebuilds/, in node-gyp-build's layout,
// on this machine with prebuildify, cmake-js and zig. Targets that are up to date are skipped.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { bootstrap, load, root } from './bootstrap.mjs'

const ZIG = '0.17.1'

/**
 * Each platform with zig's name for it. The glibc is that of Debian 10 and RHEL 8, the oldest that Node 20 supports; the macOS
 * is the oldest that Node 20 supports.
 */
export const targets = {
  'linux-x64-glibc': 'x86_64-linux-gnu.2.28',
  'linux-x64-musl': 'x86_64-linux-musl',
  'linux-arm64-glibc': 'aarch64-linux-gnu.2.28',
  'linux-arm64-musl': 'aarch64-linux-musl',
  'darwin-x64': 'x86_64-macos.11.0',
  'darwin-arm64': 'aarch64-macos.11.0',
  'win32-x64': 'x86_64-windows-gnu',
  'win32-arm64': 'aarch64-windows-gnu',
}

/** Path of a target's addon, relative to the package's root. */
export function prebuildPath(target) {
  const [platform, arch, libc] = target.split('-')
  return join('prebuilds', `${platform}-${arch}`, `${['rapo', libc].filter(Boolean).join('.')}.node`)
}

/** Content of the file beside it: the addon's size and SHA-256, which lib/setup/addons.ts checks before it loads the addon. */
export function recordPath(target) {
  return prebuildPath(target).replace(/\.node$/, '.json')
}

/** The target of this machine. */
export function hostTarget() {
  const libc = process.report.getReport().header.glibcVersionRuntime ? 'glibc' : 'musl'
  return [process.platform, process.arch, ...(process.platform === 'linux' ? [libc] : [])].join('-')
}

/** Builds the targets that are missing or older than the sources. Throws ERR_RAPO_SETUP with the compiler's last lines. */
export async function prebuild(names = Object.keys(targets), report = console.error) {
  const [{ describeFile }, { hashSources }, { work }, { findTools, requireTools }] = await Promise.all(
    ['addons.ts', 'cache.ts', 'process.ts', 'tools.ts'].map(load),
  )
  for (const name of names) {
    if (!targets[name]) throw new Error(`no target ${name}; there are ${Object.keys(targets).join(', ')}`)
    const sources = createHash('sha256')
      .update(hashSources() + ZIG + compile + readFileSync(nodeGyp) + targets[name] + findRowCompiler(name))
      .digest('hex')
    const stamp = join(root, 'build', 'prebuilds', `${name}.sha256`)
    const addon = join(root, prebuildPath(name))
    const record = join(root, recordPath(name))
    await locked(name, report, async () => {
      const isThere = [addon, record, stamp].every(existsSync)
      if (isThere && readFileSync(stamp, 'utf8') === sources) return
      const start = performance.now()
      requireTools(await findTools(), ['cmake', 'python'])
      await prepareZig(report)
      rmSync(record, { force: true })
      await compile(name, work)
      writeFileSync(record, `${JSON.stringify(describeFile(addon))}\n`)
      writeFileSync(stamp, sources)
      report(`prebuilds ${name} (${((performance.now() - start) / 1000).toFixed(1)} s)`)
    })
  }
}

/** zig in this version; installs it if it is missing. */
export async function prepareZig(report = console.error) {
  const [{ cacheDir }, { makeVenv }] = await Promise.all(['cache.ts', 'venv.ts'].map(load))
  return locked('zig', report, () => installZig(join(cacheDir(), `zig-${ZIG}`), makeVenv, report))
}

async function locked(what, report, body) {
  const { withLock } = await load('../base/lock.ts')
  const locks = join(root, 'build', 'prebuilds', 'locks')
  mkdirSync(locks, { recursive: true })
  return withLock(join(locks, `${what}.lock`), () => report(`waiting for another run: ${what}`), body)
}

/**
 * zig's Clang makes the AVX2 row passes a tenth slower in float32 and a seventh slower in bfloat16 than GCC does
 * (bench/compilers.ts). These passes need no library, so this machine's g++ for x86-64, if there is one, compiles them for any
 * libc.
 */
export function findRowCompiler(target) {
  if (!target.startsWith('linux-x64')) return undefined
  return ['x86_64-linux-gnu-g++', 'g++'].find(command => {
    const { status, stdout } = spawnSync(command, ['-dumpmachine'], { encoding: 'utf8' })
    return status === 0 && /^x86_64-.*linux/.test(stdout)
  })
}

/** The program that prebuildify calls as node-gyp. */
const nodeGyp = join(root, 'scripts', 'zig-gyp.mjs')

async function compile(name, work) {
  const [platform, arch, libc] = name.split('-')
  // A directory of its own, since prebuildify moves away the first addon that it finds in build/Release.
  const cwd = join(root, 'build', 'prebuilds', name)
  const log = `${cwd}.log`
  rmSync(cwd, { recursive: true, force: true })
  mkdirSync(cwd, { recursive: true })
  writeFileSync(log, '')
  const prebuildify = createRequire(import.meta.url).resolve('prebuildify/bin.js')
  const args = ['--napi', '--name', 'rapo', '--platform', platform, '--arch', arch, '--node-gyp', nodeGyp]
  if (libc) args.push('--libc', libc, '--tag-libc', libc)
  const run = { env: process.env, log }
  await work(
    `building the kernels for ${name} (prebuildify)`,
    process.execPath,
    [prebuildify, ...args, '--cwd', cwd, '--out', root],
    run,
  )
}

/** zig in a fixed version, from its Python wheel. */
async function installZig(dir, makeVenv, report) {
  const done = join(dir, 'rapo-done')
  if (!existsSync(done)) {
    report(`installing zig ${ZIG} into ${dir} …`)
    rmSync(dir, { recursive: true, force: true })
    mkdirSync(dirname(dir), { recursive: true })
    const log = `${dir}.log`
    writeFileSync(log, '')
    const install = await makeVenv(dir, { env: process.env, log })
    await install('zig', [`ziglang==${ZIG}`])
    const [python] = readdirSync(join(dir, 'lib'))
    writeFileSync(done, join(dir, 'lib', python, 'site-packages', 'ziglang', 'zig'))
  }
  return readFileSync(done, 'utf8')
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await bootstrap({ addons: false })
  const names = process.argv.slice(2)
  try {
    await prebuild(names.length ? names : undefined)
  } catch (error) {
    console.error(error.message)
    process.exitCode = 1
  }
}
