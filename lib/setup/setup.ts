/** `rapo setup`: libtorch found or installed, the engine addon compiled against it. */

import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { RapoError } from '../base/errors.js'
import { withLock } from '../base/lock.js'
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

/** What set-up is doing. */
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
  readonly onProgress?: (event: SetupEvent) => void
  /** Look for libtorch anew and compile the engine from nothing, even if a finished one is there. */
  readonly force?: boolean
  readonly env?: NodeJS.ProcessEnv
  /** As in LibtorchOptions. */
  readonly prefixes?: readonly string[]
}

/**
 * Makes the engine ready to load and returns it; does nothing that is done already. A set-up in another process is
 * waited for. Throws ERR_RAPO_SETUP: one message for all missing tools, or the last lines of pip or the compiler.
 */
export async function setup(options: SetupOptions = {}): Promise<BuiltEngine> {
  const { env = process.env, force = false, onProgress = () => {} } = options
  const cache = cacheDir(env)
  let start = performance.now()
  const finish = (part: SetupEvent['part'], message: string) => {
    onProgress({ part, message, seconds: (performance.now() - start) / 1000 })
    start = performance.now()
  }

  const ready = findEngine(cache, env)
  if (ready && !force) {
    markUsed(ready)
    finish('engine', `ready, against ${describe(ready.marker.libtorch)}`)
    return ready
  }

  const libtorch = await prepareLibtorch(
    { cache, env, ...(options.prefixes ? { prefixes: options.prefixes } : {}) },
    message => onProgress({ part: 'libtorch', message }),
  )
  finish('libtorch', `${describe(libtorch)}, from ${libtorch.source}`)
  const onMessage = (message: string) => onProgress({ part: 'engine', message })
  const engine = await locked(cache, onMessage, signal =>
    buildEngine(libtorch, {
      cache,
      env,
      force,
      signal,
      onMessage,
      onProgress: (done, total) => onProgress({ part: 'engine', message: 'compiling', done, total }),
    }),
  )
  finish('engine', `built: ${engine.addon}`)
  return engine
}

async function prepareLibtorch(
  options: LibtorchOptions,
  onMessage: (message: string) => void,
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
  return locked(options.cache, onMessage, async signal => {
    // Another process may have installed it meanwhile.
    return (await find()) ?? (await installLibtorch({ ...options, onMessage, signal }))
  })
}

function describe({ dir, version }: { dir: string; version: string }): string {
  return `libtorch ${version} in ${dir}`
}

/** One set-up at a time in a cache; the others wait. The signal says that the lock was lost: two builds must not mix. */
async function locked<T>(
  cache: string,
  onMessage: (message: string) => void,
  body: (lost: AbortSignal) => Promise<T>,
): Promise<T> {
  try {
    mkdirSync(cache, { recursive: true })
  } catch (cause) {
    throw new RapoError(
      'ERR_RAPO_SETUP',
      `the cache directory ${cache} cannot be made; RAPO_CACHE names another`,
      { cause },
    )
  }
  const onHeld = (holder: string) => onMessage(`waiting for another rapo set-up to finish (${holder})`)
  return withLock(join(cache, 'set-up.lock'), onHeld, body)
}
