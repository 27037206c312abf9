#!/usr/bin/env node
// prebuildify runs this program as node-gyp. It runs cmake-js with zig as the compiler, for the platform that PREBUILD_* names,
// in ./build of the working directory.
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

/** Writes a shell script, since CMake wants a file for each program. */
function program(name, args, first = []) {
  const lines = ['#!/bin/sh', ...first, `exec '${zig}' ${args} "$@"`]
  writeFileSync(name, `${lines.join('\n')}\n`, { mode: 0o755 })
  return resolve(name)
}

const cxx = [
  // zig would compile the whole C library for a first executable. An object file is enough for CMake's check of the compiler.
  'case "$*" in *CMakeCXXCompilerId*) set -- -c "$@" ;; esac',
  // zig's linker for macOS crashes on a bundle. Node loads a shared library as well.
  'for x; do shift; [ "$x" = -bundle ] && x=-shared; set -- "$@" "$x"; done',
]
const rowCompiler = findRowCompiler(target)
if (rowCompiler) cxx.push(`case "$*" in *-DRAPO_ISA=avx2*) exec '${rowCompiler}' "$@" ;; esac`)

/** Arguments of the linker. The command goes through a shell, and a path may contain a space. */
function linkFlags() {
  if (platform === 'linux') {
    // Otherwise Node's operator new would replace this addon's, and its bad_alloc would be a class that is not caught here.
    writeFileSync('exports.map', '{ global: napi_*; node_api_*; local: *; };\n')
    return `-s '-Wl,--version-script=${resolve('exports.map')}'`
  }
  if (platform === 'win32') return `-s '${importLibrary()}'`
  return '-s'
}

/** A list of node.exe's functions for the linker. */
function importLibrary() {
  const [nodeApi, engineApi] = Object.values(require('node-api-headers').def_paths).map(file =>
    readFileSync(file, 'utf8'),
  )
  // Both lists begin with the same two lines.
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
