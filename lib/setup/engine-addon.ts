/** Finds and loads the engine addon that `rapo setup` built. */
import { existsSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { isMainThread } from 'node:worker_threads'
import { RapoError } from '../base/errors.js'
import {
  type Addon,
  loadAddon,
  loadKernels,
  locateCudaPackage,
  locateKernels,
  requirePackage,
} from './addons.js'
import { cacheDir, engineMismatch, findEngine, listBrokenEngines, listEngines } from './cache.js'

/** The raw functions of bindings/engine.cpp. */
export type EngineAddon = Addon

let engine: EngineAddon | undefined

/**
 * The engine addon: the file that RAPO_ENGINE_ADDON names; otherwise the one that `rapo setup` left in the cache. Throws
 * ERR_RAPO_SETUP, with the fix, if it is missing, outdated or cannot be loaded.
 */
export function loadEngine(): EngineAddon {
  // OpenMP reads this when libtorch is loaded. By default its threads spin between two small operations, which costs ten times
  // the work itself as soon as another process needs the cores.
  process.env.OMP_WAIT_POLICY ??= 'passive'
  // A worker's process.env is a copy, which OpenMP does not see.
  if (!isMainThread) loadKernels().setEnvironment('OMP_WAIT_POLICY', process.env.OMP_WAIT_POLICY)
  if (!engine) {
    const { file, record } = locate()
    engine = loadAddon('engine', file, record)
  }
  return engine
}

/**
 * Tells the engine where the CUDA kernels' library is: beside the kernels addon, where the engine does not look by itself, or
 * in the library's own package.
 */
export function nameCudaLibrary(engine: EngineAddon): void {
  const beside = join(dirname(locateKernels()), 'librapo_cuda.so')
  const library = existsSync(beside) ? beside : locateCudaPackage().library
  if (library) engine.setCudaLibrary(library)
}

/** The file that loadEngine() loads. Throws ERR_RAPO_SETUP if there is none. */
export function locateEngine(): string {
  return locate().file
}

function locate() {
  if (process.env.RAPO_ENGINE_ADDON) return { file: resolve(process.env.RAPO_ENGINE_ADDON) }
  requirePackage('engine')
  const found = findEngine()
  if (!found) throw new RapoError('ERR_RAPO_SETUP', explainMissingEngine())
  return { file: found.addon, record: found.marker }
}

/** The reason why no engine in the cache can be used, and the command that builds one. */
function explainMissingEngine(): string {
  const reasons = [
    ...listEngines().map(engine => `${engine.dir}: ${engineMismatch(engine)}`),
    ...listBrokenEngines().map(dir => `${dir}: an unfinished or damaged build`),
  ]
  const seen = reasons.length ? `:\n${reasons.map(reason => `  ${reason}\n`).join('')}` : ': '
  return `the engine addon is not built for this rapo and its libtorch (looked in ${cacheDir()})${seen}run \`npx rapo setup\``
}
