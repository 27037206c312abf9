/** The only file that loads native addons. Works from lib/ (tsx), from dist/, and in worker threads. */
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, resolve } from 'node:path'
import { isMainThread } from 'node:worker_threads'
import { RapoError } from '../base/errors.js'
import { packageRoot } from '../base/package.js'
import { cacheDir, engineMismatch, findEngine, listBrokenEngines, listEngines } from './cache.js'

/** The raw functions of bindings/kernels.cpp; lib/loss/kernels.ts gives them their types. */
export interface KernelsAddon {
  setErrorClass(errorClass: typeof RapoError): void
  setEnvironment(name: string, value: string): void
  setCudaLibrary(file: string): void
  readonly [name: string]: unknown
}

/** The raw functions of bindings/engine.cpp; lib/model/engine.ts gives them their types. */
export interface EngineAddon {
  setErrorClass(errorClass: typeof RapoError): void
  setCudaLibrary(file: string): void
  readonly [name: string]: unknown
}

const require = createRequire(import.meta.url)
let kernels: KernelsAddon | undefined
let engine: EngineAddon | undefined

/**
 * The kernels addon: the file that RAPO_KERNELS_ADDON names, else build/Release or the package's prebuilds.
 * Throws ERR_RAPO_SETUP, with the fix, where there is none for this platform or it does not load.
 */
export function loadKernels(): KernelsAddon {
  if (kernels) return kernels
  kernels = load<KernelsAddon>('kernels', locateKernels())
  const { library } = locateCudaPackage()
  if (library) kernels.setCudaLibrary(library)
  return kernels
}

/** The package that brings the CUDA kernels to this platform, and its library where it is installed. */
export function locateCudaPackage(): { name: string; library?: string } {
  const name = `rapo-cuda-${process.platform}-${process.arch}`
  try {
    return { name, library: require.resolve(`${name}/librapo_cuda.so`) }
  } catch {
    return { name }
  }
}

/**
 * The engine addon: the file that RAPO_ENGINE_ADDON names, else the one that `rapo setup` left in the cache.
 * Throws ERR_RAPO_SETUP, with the fix, where it is missing, outdated or does not load.
 */
export function loadEngine(): EngineAddon {
  // OpenMP reads this when libtorch is loaded. Its default is to spin between two small operations, which costs ten
  // times the work itself as soon as another process wants the cores.
  process.env.OMP_WAIT_POLICY ??= 'passive'
  // A worker's process.env is a copy, which OpenMP does not see.
  if (!isMainThread) loadKernels().setEnvironment('OMP_WAIT_POLICY', process.env.OMP_WAIT_POLICY)
  engine ??= load<EngineAddon>('engine', locateEngine())
  return engine
}

/**
 * Tells the engine where the CUDA kernels' library is: beside the kernels addon, where the engine's does not look, or in
 * its package.
 */
export function nameCudaLibrary(engine: EngineAddon): void {
  const beside = join(dirname(locateKernels()), 'librapo_cuda.so')
  const library = existsSync(beside) ? beside : locateCudaPackage().library
  if (library) engine.setCudaLibrary(library)
}

/** The file that loadKernels() loads. Throws ERR_RAPO_SETUP where there is none. */
export function locateKernels(): string {
  if (process.env.RAPO_KERNELS_ADDON) return resolve(process.env.RAPO_KERNELS_ADDON)
  try {
    return require('node-gyp-build').path(packageRoot)
  } catch (cause) {
    throw new RapoError('ERR_RAPO_SETUP', explainMissingKernels(), { cause })
  }
}

/** What rapo comes prebuilt for. */
export const prebuiltPlatforms = ['linux-x64', 'linux-arm64', 'darwin-x64', 'darwin-arm64', 'win32-x64']

/** Why there is no kernels addon for a platform, and what makes one. */
export function explainMissingKernels(platform = `${process.platform}-${process.arch}`): string {
  const reason = prebuiltPlatforms.includes(platform)
    ? `the kernels addon for ${platform} is missing from ${packageRoot}${isClone ? '' : ': the package is not whole; `npm install --force rapo` fetches it anew'}`
    : `rapo comes prebuilt for ${prebuiltPlatforms.join(', ')}, not for ${platform}`
  return `${reason}; ${buildKernels}`
}

/** The file that loadEngine() loads. Throws ERR_RAPO_SETUP where there is none. */
export function locateEngine(): string {
  const file = process.env.RAPO_ENGINE_ADDON ? resolve(process.env.RAPO_ENGINE_ADDON) : findEngine()?.addon
  if (file) return file
  throw new RapoError('ERR_RAPO_SETUP', explainMissingEngine())
}

/** Why no engine in the cache will do, and the command that makes one. */
function explainMissingEngine(): string {
  const reasons = [
    ...listEngines().map(engine => `${engine.dir}: ${engineMismatch(engine)}`),
    ...listBrokenEngines().map(dir => `${dir}: an unfinished or damaged build`),
  ]
  const seen = reasons.length ? `:\n${reasons.map(reason => `  ${reason}\n`).join('')}` : ' '
  return `the engine addon is not built for this rapo and its libtorch (looked in ${cacheDir()})${seen}run \`npx rapo setup\``
}

/** A clone has what develops rapo; an installed package does not. */
const isClone = existsSync(join(packageRoot, 'scripts'))
const buildCommand = isClone ? 'npm run build:kernels' : 'npx cmake-js build -O build -T rapo_kernels'
const buildKernels = `\`${buildCommand}\` in ${packageRoot} compiles it (needs a C++17 compiler and CMake >= 3.19)`

/**
 * What the dynamic linker's or Node's complaint about an addon means, and the command that mends it.
 * @param machine the C library of this process; glibc undefined where it is another, as musl
 */
export function explainLoadFailure(
  name: 'kernels' | 'engine',
  complaint: string,
  machine: { readonly glibc: string | undefined } = { glibc: glibcVersion() },
): string {
  const anew = name === 'engine' ? 'run `npx rapo setup --force`' : buildKernels
  const [, wanted] = complaint.match(/version [`']?GLIBC_([\d.]+)'? not found/) ?? []
  if (wanted) {
    return `it needs glibc ${wanted}, this machine has ${machine.glibc ?? 'another C library'}: a newer system is needed, or ${anew}`
  }
  if (machine.glibc === undefined && /ld-linux|libc\.so\.6/.test(complaint)) {
    return 'it is for glibc and this system is built on musl: set LIBC=musl'
  }
  const [, library] = complaint.match(/(lib(?:torch|c10|gomp|mkl)[\w.-]*): cannot open shared object/) ?? []
  if (library) return `${library} of its libtorch is gone: run \`npx rapo setup\``
  if (/undefined symbol|symbol not found|procedure could not be found/i.test(complaint)) {
    return name === 'engine'
      ? `its libtorch was replaced by another version since it was built: ${anew}`
      : `this Node.js (${process.version}) lacks a function of Node-API 8: Node.js >= 20.19 is needed`
  }
  if (
    /file too short|invalid ELF header|wrong ELF class|not a valid Win32|mach-o|cannot open shared object/i.test(
      complaint,
    )
  ) {
    const refetch = name === 'engine' || isClone ? '' : '`npm install --force rapo` fetches it anew, or '
    return `the file is damaged, or for another platform than ${process.platform}-${process.arch}: ${refetch}${anew}`
  }
  return anew
}

function glibcVersion(): string | undefined {
  return (process.report?.getReport() as { header?: { glibcVersionRuntime?: string } } | undefined)?.header
    ?.glibcVersionRuntime
}

function load<Addon extends KernelsAddon | EngineAddon>(name: 'kernels' | 'engine', file: string): Addon {
  try {
    const addon: Addon = require(file)
    addon.setErrorClass(RapoError)
    return addon
  } catch (cause) {
    const complaint = firstLine(cause)
    throw new RapoError(
      'ERR_RAPO_SETUP',
      `the ${name} addon ${file} did not load: ${complaint}; ${explainLoadFailure(name, complaint)}`,
      { cause },
    )
  }
}

function firstLine(error: unknown): string {
  return String(error instanceof Error ? error.message : error).split('\n')[0] ?? ''
}
