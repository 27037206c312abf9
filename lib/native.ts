/** The only file that loads native addons. Works from lib/ (tsx), from dist/, and in worker threads. */
import { createRequire } from 'node:module'
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
  if (kernels) return kernels
  const file = process.env.RAPO_KERNELS_ADDON
  try {
    const addon: KernelsAddon = file ? require(file) : require('node-gyp-build')(packageRoot)
    addon.setErrorClass(RapoError)
    kernels = addon
    return addon
  } catch (cause) {
    const where = file ? `RAPO_KERNELS_ADDON=${file}` : `${process.platform}-${process.arch}`
    throw new RapoError(
      'ERR_RAPO_SETUP',
      `the kernels addon did not load (${where}): ${firstLine(cause)}. Build it: npm run build:kernels in ${packageRoot} (needs a C++17 compiler and CMake >= 3.18)`,
      { cause },
    )
  }
}

/**
 * The engine addon: the file that RAPO_ENGINE_ADDON names, else the one that `rapo setup` left in the cache.
 * Throws ERR_RAPO_SETUP, with the fix, where it is missing, outdated or does not load.
 */
export function loadEngine(): EngineAddon {
  if (engine) return engine
  const file = process.env.RAPO_ENGINE_ADDON || findEngine()?.addon
  if (!file) {
    throw new RapoError(
      'ERR_RAPO_SETUP',
      `the engine addon is not built for this version of rapo (looked in ${cacheDir()}): run \`npx rapo setup\``,
    )
  }
  try {
    const addon: EngineAddon = require(file)
    addon.setErrorClass(RapoError)
    engine = addon
    return addon
  } catch (cause) {
    throw new RapoError(
      'ERR_RAPO_SETUP',
      `the engine addon ${file} did not load: ${firstLine(cause)}. Run \`npx rapo setup --force\`; \`npx rapo doctor\` says more`,
      { cause },
    )
  }
}

function firstLine(error: unknown): string {
  return String(error instanceof Error ? error.message : error).split('\n')[0] ?? ''
}
