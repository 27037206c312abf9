/** The only file that loads native addons. Works from lib/ (tsx), from dist/, and in worker threads. */
import { createRequire } from 'node:module'
import { resolve } from 'node:path'
import { RapoError } from './errors.js'
import { cacheDir, findEngine, packageRoot } from './setup/cache.js'

/** The raw functions of bindings/kernels.cpp; lib/kernels.ts gives them their types. */
export interface KernelsAddon {
  setErrorClass(errorClass: typeof RapoError): void
  readonly [name: string]: unknown
}

/** The raw functions of bindings/engine.cpp; lib/policy.ts gives them their types. */
export interface EngineAddon {
  setErrorClass(errorClass: typeof RapoError): void
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
  kernels ??= load<KernelsAddon>('kernels', locateKernels(), buildKernels)
  return kernels
}

/**
 * The engine addon: the file that RAPO_ENGINE_ADDON names, else the one that `rapo setup` left in the cache.
 * Throws ERR_RAPO_SETUP, with the fix, where it is missing, outdated or does not load.
 */
export function loadEngine(): EngineAddon {
  // OpenMP reads this when libtorch is loaded. Its default is to spin between two small operations, which costs ten
  // times the work itself as soon as another process wants the cores.
  process.env.OMP_WAIT_POLICY ??= 'passive'
  engine ??= load<EngineAddon>('engine', locateEngine(), 'run `npx rapo setup --force`')
  return engine
}

/** The file that loadKernels() loads. Throws ERR_RAPO_SETUP where there is none. */
export function locateKernels(): string {
  if (process.env.RAPO_KERNELS_ADDON) return resolve(process.env.RAPO_KERNELS_ADDON)
  try {
    return require('node-gyp-build').path(packageRoot)
  } catch (cause) {
    const platform = `${process.platform}-${process.arch}`
    throw new RapoError('ERR_RAPO_SETUP', `no kernels addon for ${platform}: ${buildKernels}`, { cause })
  }
}

/** The file that loadEngine() loads. Throws ERR_RAPO_SETUP where there is none. */
export function locateEngine(): string {
  const file = process.env.RAPO_ENGINE_ADDON ? resolve(process.env.RAPO_ENGINE_ADDON) : findEngine()?.addon
  if (file) return file
  throw new RapoError(
    'ERR_RAPO_SETUP',
    `the engine addon is not built for this rapo and its libtorch (looked in ${cacheDir()}): run \`npx rapo setup\``,
  )
}

const buildKernels = `run \`npm run build:kernels\` in ${packageRoot} (needs a C++17 compiler and CMake >= 3.18)`

function load<Addon extends KernelsAddon | EngineAddon>(name: string, file: string, fix: string): Addon {
  try {
    const addon: Addon = require(file)
    addon.setErrorClass(RapoError)
    return addon
  } catch (cause) {
    throw new RapoError(
      'ERR_RAPO_SETUP',
      `the ${name} addon ${file} did not load: ${firstLine(cause)}; ${fix}`,
      {
        cause,
      },
    )
  }
}

function firstLine(error: unknown): string {
  return String(error instanceof Error ? error.message : error).split('\n')[0] ?? ''
}
