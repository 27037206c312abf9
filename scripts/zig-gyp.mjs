#!/usr/bin/env node
// What prebuildify runs as its node-gyp: cmake-js with zig as the compiler, for the platform that PREBUILD_* names, in
// ./build of the working directory.
import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism } from 'node:os'
import { resolve } from 'node:path'
import { root } from './bootstrap.mjs'
import { findRowCompiler, prepareZig, targets } from './prebuilds.mjs'

const require = createRequire(import.meta.url)
const { PREBUILD_PLATFORM: platform, PREBUILD_ARCH: arch, PREBUILD_LIBC: libc } = process.env
const target = [platform, arch, ...(platform === 'linux' ? [libc] : [])].join('-')
const triple = targets[target]
if (!triple) throw new Error(`no target ${target}; there are ${Object.keys(targets).join(', ')}`)
const zig = await prepareZig()

/** CMake wants a file for each program. */
function program(name, args, first = []) {
  const lines = ['#!/bin/sh', ...first, `exec '${zig}' ${args} "$@"`]
  writeFileSync(name, `${lines.join('\n')}\n`, { mode: 0o755 })
  return resolve(name)
}

const cxx = [
  // For a first executable zig would compile the whole C library; CMake's question needs none.
  'case "$*" in *CMakeCXXCompilerId*) set -- -c "$@" ;; esac',
  // zig's linker for macOS crashes at a bundle. Node loads a library as well.
  'for x; do shift; [ "$x" = -bundle ] && x=-shared; set -- "$@" "$x"; done',
]
const rowCompiler = findRowCompiler(target)
if (rowCompiler) cxx.push(`case "$*" in *-DRAPO_ISA=avx2*) exec '${rowCompiler}' "$@" ;; esac`)

/** What the linker is told. The command goes through a shell, and a path may hold a space. */
function linkFlags() {
  if (platform === 'linux') {
    // Else Node's own operator new would take the place of this one, and its bad_alloc be none that is caught here.
    writeFileSync('exports.map', '{ global: napi_*; node_api_*; local: *; };\n')
    return `-s '-Wl,--version-script=${resolve('exports.map')}'`
  }
  if (platform === 'win32') return `-s '${importLibrary()}'`
  return '-s'
}

/** The functions of node.exe, for the linker. */
function importLibrary() {
  const [nodeApi, engineApi] = Object.values(require('node-api-headers').def_paths).map(file =>
    readFileSync(file, 'utf8'),
  )
  // Two lists with the same two lines at their head.
  writeFileSync('node.def', `${nodeApi.trimEnd()}\n${engineApi.replace(/^NAME.*\nEXPORTS.*\n/, '')}`)
  const machine = arch === 'arm64' ? 'arm64' : 'i386:x86-64'
  execFileSync(zig, ['dlltool', '-m', machine, '-d', 'node.def', '-l', 'node.lib'], { stdio: 'inherit' })
  return resolve('node.lib')
}

const variables = {
  SYSTEM_NAME: { linux: 'Linux', darwin: 'Darwin', win32: 'Windows' }[platform],
  SYSTEM_PROCESSOR: triple.split('-')[0],
  CXX_COMPILER: program('c++', `c++ -target ${triple}`, cxx),
  AR: program('ar', 'ar'),
  RANLIB: program('ranlib', 'ranlib'),
  MODULE_LINKER_FLAGS: linkFlags(),
  TRY_COMPILE_TARGET_TYPE: 'STATIC_LIBRARY',
  SKIP_RPATH: 'ON',
}
const flags = Object.entries(variables).map(([name, value]) => `--CDCMAKE_${name}=${value}`)
const cmakeJs = require.resolve('cmake-js/bin/cmake-js')
const where = ['-d', root, '-O', 'build', '-T', 'rapo_kernels', '-p', `${availableParallelism()}`]
execFileSync(process.execPath, [cmakeJs, 'rebuild', ...where, ...flags], { stdio: 'inherit' })
