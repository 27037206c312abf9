/** Compiles the engine addon against a libtorch, with plain CMake, into the cache. */

import {
  copyFileSync,
  existsSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism, freemem } from 'node:os'
import { join, resolve, sep } from 'node:path'
import { RapoError } from '../base/errors.js'
import { makeDirectories } from '../base/files.js'
import { packageRoot, packageVersion } from '../base/package.js'
import { digest } from '../base/random.js'
import { describeFile } from './addons.js'
import {
  type BuiltEngine,
  type EngineMarker,
  engineAddonName,
  hashSources,
  listEngines,
  markUsed,
} from './cache.js'
import type { TorchDir } from './inspect.js'
import { ask, work } from './process.js'
import { dropBrokenCache } from './tree.js'

export interface BuildOptions {
  readonly cache: string
  readonly env: NodeJS.ProcessEnv
  /** Build from nothing, even if there is a finished build. */
  readonly force?: boolean
  readonly signal?: AbortSignal
  readonly onMessage: (message: string) => void
  /** Number of compiled files, and of all files. */
  readonly onProgress?: (done: number, total: number) => void
}

/** The memory that a compiler takes with libtorch's headers, at most. */
const BYTES_PER_JOB = 1.5e9
/** Number of finished addons and build trees that are kept: those used last. */
const KEEP_ENGINES = 4
const KEEP_TREES = 2

/**
 * The engine addon for these sources and this libtorch. Builds it unless it is there already. The caller holds the cache's
 * lock. Throws ERR_RAPO_SETUP with the compiler's last lines if the build fails.
 */
export async function buildEngine(libtorch: TorchDir, options: BuildOptions): Promise<BuiltEngine> {
  const { cache, env, force } = options
  const sources = hashSources()
  const key = {
    version: packageVersion,
    platform: process.platform,
    arch: process.arch,
    libtorch: pick(libtorch),
  }
  const dir = join(cache, 'engine', `${packageVersion}-${digest({ ...key, sources })}`)
  const whole = () => listEngines(cache).find(engine => engine.dir === dir)

  const built = whole()
  if (built && !force) {
    markUsed(built)
    return built
  }

  const start = performance.now()
  const ninja = (await ask('ninja', ['--version'], { env })).ok
  // Successive versions of the sources share the tree, so that only changed files are compiled. CMake reads CXX only when it
  // configures a new tree.
  const tree = join(cache, 'build', digest({ ...key, packageRoot, ninja, compiler: env.CXX || undefined }))
  const busy = join(tree, 'busy')
  // A killed compiler may have left a half-written object file that looks new.
  if (force || existsSync(busy)) rmSync(tree, { recursive: true, force: true })
  const log = join(tree, 'build.log')
  const begin = () => {
    makeDirectories(tree)
    writeFileSync(busy, '')
    writeFileSync(log, '')
  }
  begin()
  dropBrokenCache(tree)

  const jobs = countJobs()
  options.onMessage(`compiling the engine against libtorch ${libtorch.version} (${jobs} at a time)`)
  const run = { env, log, ...(options.signal ? { signal: options.signal } : {}) }
  const configure = () =>
    work('configuring the engine (cmake)', 'cmake', configureArguments(tree, ninja, libtorch), run)
  const isOld = existsSync(join(tree, 'CMakeCache.txt'))
  try {
    try {
      await configure()
    } catch (error) {
      if (!isOld || !isSetupError(error)) throw error
      options.onMessage('the old build tree cannot be configured any more; compiling from nothing')
      rmSync(tree, { recursive: true, force: true })
      begin()
      await configure()
    }
    await work(
      'building the engine (cmake --build)',
      'cmake',
      ['--build', tree, '--target', 'rapo_engine', '-j', `${jobs}`],
      {
        ...run,
        onLine: line => reportProgress(line, options.onProgress),
      },
    )
  } catch (error) {
    // Files of tools that ended by themselves can be used by the next attempt.
    if (isSetupError(error)) rmSync(busy, { force: true })
    throw error
  }
  rmSync(busy)
  if (hashSources() !== sources) {
    throw new RapoError(
      'ERR_RAPO_SETUP',
      'the sources changed while the engine was compiled; run set-up again',
    )
  }

  makeDirectories(dir)
  rmSync(join(dir, 'done.json'), { force: true })
  const addon = join(dir, engineAddonName)
  // Renamed into place, so that a process that has loaded an older copy keeps it.
  copyFileSync(join(tree, engineAddonName), `${addon}.new`)
  renameSync(`${addon}.new`, addon)
  const marker: EngineMarker = {
    ...key,
    sources,
    ...describeFile(addon),
    seconds: (performance.now() - start) / 1000,
  }
  writeFileSync(join(dir, 'done.json.new'), `${JSON.stringify(marker, null, 2)}\n`)
  renameSync(join(dir, 'done.json.new'), join(dir, 'done.json'))
  prune(cache, dir, tree)
  return whole()!
}

/** As of a tool that ended by itself. */
function isSetupError(error: unknown): boolean {
  return error instanceof RapoError && error.code === 'ERR_RAPO_SETUP'
}

function pick({ dir, version }: TorchDir) {
  return { dir, version }
}

function countJobs(): number {
  const memory = process.availableMemory?.() ?? freemem()
  return Math.max(1, Math.min(availableParallelism(), Math.floor(memory / BYTES_PER_JOB)))
}

function configureArguments(tree: string, ninja: boolean, libtorch: TorchDir): string[] {
  const require = createRequire(import.meta.url)
  return [
    '-S',
    packageRoot,
    '-B',
    tree,
    ...(ninja ? ['-G', 'Ninja'] : []),
    '-DCMAKE_BUILD_TYPE=Release',
    '-DCMAKE_CXX_FLAGS_RELEASE=-O2 -DNDEBUG',
    `-DCMAKE_CXX_FLAGS=${libtorch.cxx11Abi ? '' : '-D_GLIBCXX_USE_CXX11_ABI=0'}`,
    '-DRAPO_ENGINE=ON',
    `-DTorch_DIR=${libtorch.cmakeDir}`,
    `-DCMAKE_PREFIX_PATH=${libtorch.dir}`,
    `-DCMAKE_JS_INC=${require('node-api-headers').include_dir}`,
    // A relative path refers to this process's working directory, which is not CMake's.
    `-DRAPO_NODE_ADDON_API=${resolve(require('node-addon-api').include_dir)}`,
  ]
}

/** Ninja writes "[3/12] …", Make "[ 25%] …". */
function reportProgress(line: string, onProgress?: (done: number, total: number) => void) {
  const [, done, total] = line.match(/^\[(\d+)\/(\d+)\]/) ?? []
  const [, percent] = line.match(/^\[ *(\d+)%\]/) ?? []
  if (done && total) onProgress?.(Number(done), Number(total))
  else if (percent) onProgress?.(Number(percent), 100)
}

/** Deletes broken and old addons, old build trees, and libtorches that no addon needs. */
function prune(cache: string, dir: string, tree: string) {
  const kept = listEngines(cache).slice(0, KEEP_ENGINES)
  const keptDirs = new Set([dir, ...kept.map(engine => engine.dir)])
  for (const name of readdirSync(join(cache, 'engine'))) {
    const other = join(cache, 'engine', name)
    if (!keptDirs.has(other)) rmSync(other, { recursive: true, force: true })
  }
  for (const name of readdirSync(cache)) {
    const other = realpathSync(join(cache, name))
    const needed = kept.some(engine => engine.marker.libtorch.dir.startsWith(other + sep))
    if (/^torch-[\d.]+$/.test(name) && !needed) rmSync(other, { recursive: true, force: true })
  }
  const trees = readdirSync(join(cache, 'build')).map(name => join(cache, 'build', name))
  const used = (path: string) => statSync(path).mtimeMs
  trees.sort((a, b) => used(b) - used(a))
  for (const other of trees.filter(path => path !== tree).slice(KEEP_TREES - 1)) {
    rmSync(other, { recursive: true, force: true })
  }
}
