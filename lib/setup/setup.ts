/** `rapo setup`: finds or installs libtorch and compiles the engine addon against it. */

import { join } from 'node:path'
import { type Watched, watched } from '../base/call.js'
import { RapoError } from '../base/errors.js'
import { makeDirectories } from '../base/files.js'
import { withLock } from '../base/lock.js'
import { anySignal } from '../base/wait.js'
import { buildEngine } from './build-engine.js'
import { type BuiltEngine, cacheDir, findEngine, markUsed } from './cache.js'
import {
  findLibtorch,
  installLibtorch,
  type Libtorch,
  type LibtorchOptions,
  lackOfWheel,
  torchPython,
} from './libtorch.js'
import { findTools, requireTools } from './tools.js'

/** The progress of set-up. */
export interface SetupEvent {
  readonly part: 'libtorch' | 'engine'
  /** A line for people. */
  readonly message: string
  /** Present while compiling: files compiled, of how many. */
  readonly done?: number
  readonly total?: number
  /** Present on a part's last event. */
  readonly seconds?: number
}

export interface SetupOptions {
  /**
   * What onProgress throws, or rejects with, ends the set-up, which then rejects with that error; where the engine is ready
   * already, the error becomes a warning of the process.
   */
  readonly onProgress?: (event: SetupEvent) => void
  /** Look for libtorch again and compile the engine from nothing, even if there is a finished one. */
  readonly force?: boolean
  readonly env?: NodeJS.ProcessEnv
  /** As in LibtorchOptions. */
  readonly prefixes?: readonly string[]
}

/**
 * Makes the engine ready to load and returns it. Parts that are done are skipped. Waits for a set-up that runs in another
 * process. Throws ERR_RAPO_SETUP with one message for all missing tools, or with the last lines of pip or the compiler.
 */
export async function setup(options: SetupOptions = {}): Promise<BuiltEngine> {
  const told = watched('onProgress', options.onProgress)
  try {
    return await makeReady(options, told)
  } catch (error) {
    told.failed.throwIfAborted()
    throw error
  }
}

async function makeReady(options: SetupOptions, told: Watched<[SetupEvent]>): Promise<BuiltEngine> {
  const { env = process.env, force = false } = options
  const { call: onProgress, failed } = told
  const cache = cacheDir(env)
  let start = performance.now()
  const finish = (part: SetupEvent['part'], message: string) => {
    onProgress({ part, message, seconds: (performance.now() - start) / 1000 })
    start = performance.now()
  }

  const ready = findEngine(cache, env)
  if (ready && !force) {
    markUsed(ready)
    told.finish()
    finish('engine', `ready, against ${describe(ready.marker.libtorch)}`)
    return ready
  }

  const libtorch = await prepareLibtorch(
    { cache, env, ...(options.prefixes ? { prefixes: options.prefixes } : {}) },
    message => onProgress({ part: 'libtorch', message }),
    failed,
  )
  finish('libtorch', `${describe(libtorch)}, from ${libtorch.source}`)
  const onMessage = (message: string) => onProgress({ part: 'engine', message })
  const engine = await locked(cache, onMessage, failed, signal =>
    buildEngine(libtorch, {
      cache,
      env,
      force,
      signal,
      onMessage,
      onProgress: (done, total) => onProgress({ part: 'engine', message: 'compiling', done, total }),
    }),
  )
  told.finish()
  finish('engine', `built: ${engine.addon}`)
  return engine
}

async function prepareLibtorch(
  options: LibtorchOptions,
  onMessage: (message: string) => void,
  failed: AbortSignal,
): Promise<Libtorch> {
  const find = async () => (await findLibtorch(options)).at(-1)?.found
  const [found, tools] = await Promise.all([find(), findTools(options.env)])
  if (found) {
    requireTools(tools, ['compiler', 'cmake'])
    return found
  }
  const lack = lackOfWheel()
  if (lack) throw new RapoError('ERR_RAPO_SETUP', lack)
  requireTools({ ...tools, python: torchPython(tools.python) }, ['compiler', 'cmake', 'python'])
  return locked(options.cache, onMessage, failed, async signal => {
    // Another process may have installed libtorch meanwhile.
    return (await find()) ?? (await installLibtorch({ ...options, onMessage, signal }))
  })
}

function describe({ dir, version }: { dir: string; version: string }): string {
  return `libtorch ${version} in ${dir}`
}

/**
 * Allows one set-up at a time in a cache; others wait. The signal is aborted if the lock is lost, since two builds must not
 * mix.
 */
async function locked<T>(
  cache: string,
  onMessage: (message: string) => void,
  failed: AbortSignal,
  body: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  failed.throwIfAborted()
  try {
    makeDirectories(cache)
  } catch (cause) {
    throw new RapoError(
      'ERR_RAPO_SETUP',
      `the cache directory ${cache} cannot be made; RAPO_CACHE names another`,
      { cause },
    )
  }
  const onHeld = (holder: string) => {
    onMessage(`waiting for another rapo set-up to finish (${holder})`)
    failed.throwIfAborted()
  }
  return withLock(join(cache, 'set-up.lock'), onHeld, lost => body(anySignal(lost, failed)))
}
