// npm run prebuilds [-- target …]: the kernels addon for every platform into prebuilds/, in the layout that
// node-gyp-build reads, compiled on this machine by zig. Does nothing that is done already.
// Not prebuildify: it strips with this machine's strip and knows no other libc than this machine's.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { bootstrap, load, root } from './bootstrap.mjs'

const ZIG = '0.17.1'

/** Each platform with zig's name for it. The glibc is Debian 10's and RHEL 8's, the least that Node 20 runs on; so is the macOS. */
export const targets = {
  'linux-x64-glibc': 'x86_64-linux-gnu.2.28',
  'linux-x64-musl': 'x86_64-linux-musl',
  'linux-arm64-glibc': 'aarch64-linux-gnu.2.28',
  'linux-arm64-musl': 'aarch64-linux-musl',
  'darwin-x64': 'x86_64-macos.11.0',
  'darwin-arm64': 'aarch64-macos.11.0',
  'win32-x64': 'x86_64-windows-gnu',
}

const systems = { linux: 'Linux', macos: 'Darwin', windows: 'Windows' }

/** Where a target's addon lies, from the package's root. */
export function prebuildPath(target) {
  const [platform, arch, libc] = target.split('-')
  return join('prebuilds', `${platform}-${arch}`, `${['rapo', libc].filter(Boolean).join('.')}.node`)
}

/** The target that this machine runs. */
export function hostTarget() {
  const libc = process.report.getReport().header.glibcVersionRuntime ? 'glibc' : 'musl'
  return [process.platform, process.arch, ...(process.platform === 'linux' ? [libc] : [])].join('-')
}

/** Builds those that are missing or older than the sources. Throws ERR_RAPO_SETUP with the compiler's last lines. */
export async function prebuild(names = Object.keys(targets), report = console.error) {
  const [{ hashSources }, { work }, { findTools, requireTools }] = await Promise.all(
    ['cache.ts', 'process.ts', 'tools.ts'].map(load),
  )
  for (const name of names) {
    if (!targets[name]) throw new Error(`no target ${name}; there are ${Object.keys(targets).join(', ')}`)
    const sources = createHash('sha256')
      .update(hashSources() + ZIG + compile + targets[name] + rowsByGcc(name))
      .digest('hex')
    const stamp = join(root, 'build', 'prebuilds', `${name}.sha256`)
    const addon = join(root, prebuildPath(name))
    await locked(name, report, async () => {
      if (existsSync(addon) && existsSync(stamp) && readFileSync(stamp, 'utf8') === sources) return
      const start = performance.now()
      requireTools(await findTools(), ['cmake', 'python'])
      await compile(name, addon, await prepareZig(report), work)
      writeFileSync(stamp, sources)
      report(`prebuilds ${name} (${((performance.now() - start) / 1000).toFixed(1)} s)`)
    })
  }
}

/** The zig of this version, installed where it is not there yet. */
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
 * What zig's Clang makes of the AVX2 row passes takes a tenth longer in float32 and a seventh in bfloat16 than GCC's code
 * (bench/compilers.ts). They need no library, so that this machine's GCC compiles them for any libc.
 */
function rowsByGcc(name) {
  if (!name.startsWith('linux-x64') || !gcc) return ''
  return `case "$*" in *-DRAPO_ISA=avx2*) exec '${gcc}' "$@" ;; esac\n`
}

/** A g++ for x86-64, if there is one. */
const gcc = ['x86_64-linux-gnu-g++', 'g++'].find(command => {
  const { status, stdout } = spawnSync(command, ['-dumpmachine'], { encoding: 'utf8' })
  return status === 0 && /^x86_64-.*linux/.test(stdout)
})

async function compile(name, addon, zig, work) {
  const require = createRequire(import.meta.url)
  const headers = require('node-api-headers')
  const tree = join(root, 'build', 'prebuilds', name)
  const log = join(root, 'build', 'prebuilds', `${name}.log`)
  const run = { env: { ...process.env, CMAKE_GENERATOR: '' }, log }
  rmSync(tree, { recursive: true, force: true })
  mkdirSync(tree, { recursive: true })
  writeFileSync(log, '')
  const [, cpu, system] = /^(\w+)-(\w+)/.exec(targets[name])
  // CMake wants a file for each program.
  const program = (file, args, prepare = '') => {
    writeFileSync(join(tree, file), `#!/bin/sh\n${prepare}exec '${zig}' ${args} "$@"\n`, { mode: 0o755 })
    return join(tree, file)
  }
  // For a first executable zig would compile the whole C library; CMake's question needs none.
  const noLink = 'case "$*" in *CMakeCXXCompilerId*) set -- -c "$@" ;; esac\n'
  // zig's linker for macOS crashes at a bundle. Node loads a library as well.
  const noBundle = 'for x; do shift; [ "$x" = -bundle ] && x=-shared; set -- "$@" "$x"; done\n'
  const cxx = program('c++', `c++ -target ${targets[name]}`, noLink + noBundle + rowsByGcc(name))
  // The linker's command goes through a shell: a path in it may hold a space.
  let linkFlags = '-s'
  if (system === 'linux') {
    // Else Node's own operator new would take the place of this one, and its bad_alloc be none that is caught here.
    const exports = join(tree, 'exports.map')
    writeFileSync(exports, '{ global: napi_*; node_api_*; local: *; };\n')
    linkFlags += ` '-Wl,--version-script=${exports}'`
  }
  if (system === 'windows') {
    const library = join(tree, 'node.lib')
    const definitions = join(tree, 'node.def')
    const [nodeApi, engineApi] = Object.values(headers.def_paths).map(file => readFileSync(file, 'utf8'))
    // Two lists with the same two lines at their head.
    writeFileSync(definitions, `${nodeApi.trimEnd()}\n${engineApi.replace(/^NAME.*\nEXPORTS.*\n/, '')}`)
    await work('zig dlltool', zig, ['dlltool', '-m', 'i386:x86-64', '-d', definitions, '-l', library], run)
    linkFlags += ` '${library}'`
  }
  await work(
    `configuring the kernels for ${name} (cmake)`,
    'cmake',
    [
      ...['-S', root, '-B', tree],
      '-DCMAKE_BUILD_TYPE=Release',
      `-DCMAKE_SYSTEM_NAME=${systems[system]}`,
      `-DCMAKE_SYSTEM_PROCESSOR=${cpu}`,
      `-DCMAKE_CXX_COMPILER=${cxx}`,
      `-DCMAKE_AR=${program('ar', 'ar')}`,
      `-DCMAKE_RANLIB=${program('ranlib', 'ranlib')}`,
      `-DCMAKE_MODULE_LINKER_FLAGS=${linkFlags}`,
      '-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY',
      '-DCMAKE_SKIP_RPATH=ON',
      `-DCMAKE_JS_INC=${headers.include_dir}`,
      `-DRAPO_NODE_ADDON_API=${join(root, 'node_modules', 'node-addon-api')}`,
    ],
    run,
  )
  const jobs = `${availableParallelism()}`
  const build = ['--build', tree, '--target', 'rapo_kernels', '-j', jobs]
  await work(`building the kernels for ${name} (cmake --build)`, 'cmake', build, run)
  mkdirSync(dirname(addon), { recursive: true })
  copyFileSync(join(tree, 'rapo_kernels.node'), `${addon}.new`)
  renameSync(`${addon}.new`, addon)
}

/** zig in this very version, from its Python wheel. */
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
