/** The cache directory, and how a built engine is found in it. The rest of lib/setup/ fills the cache. */
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, realpathSync, statSync, utimesSync } from 'node:fs'
import { homedir } from 'node:os'
import { join, relative, resolve } from 'node:path'
import { packageRoot, packageVersion } from '../base/package.js'
import { inspectLibtorch } from './inspect.js'

/** $RAPO_CACHE, else the platform's per-user cache directory. Not created here. */
export function cacheDir(env: NodeJS.ProcessEnv = process.env): string {
  if (env.RAPO_CACHE) return resolve(env.RAPO_CACHE)
  if (process.platform === 'darwin') return join(homedir(), 'Library', 'Caches', 'rapo')
  if (process.platform === 'win32' && env.LOCALAPPDATA) return join(env.LOCALAPPDATA, 'rapo', 'Cache')
  return join(env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'rapo')
}

/** Hash of every file that an addon is compiled from: CMakeLists.txt, native/, bindings/. */
export function hashSources(root = packageRoot): string {
  const hash = createHash('sha256')
  const files = ['CMakeLists.txt']
  for (const dir of ['native', 'bindings']) {
    for (const entry of readdirSync(join(root, dir), { recursive: true, withFileTypes: true })) {
      if (entry.isFile()) files.push(relative(root, join(entry.parentPath ?? entry.path, entry.name)))
    }
  }
  for (const file of files.sort()) {
    const content = readFileSync(join(root, file))
    hash.update(`${file.replaceAll('\\', '/')}\0${content.length}\0`).update(content)
  }
  return hash.digest('hex')
}

/** Records that an engine was chosen just now: it is then found before others and removed after them. */
export function markUsed(engine: BuiltEngine): void {
  const now = new Date()
  utimesSync(join(engine.dir, 'done.json'), now, now)
}

/** The content of done.json beside a finished engine addon. The file is written last, by a rename. */
export interface EngineMarker {
  readonly version: string
  readonly sources: string
  readonly platform: string
  readonly arch: string
  readonly libtorch: { readonly dir: string; readonly version: string }
  /** Bytes of rapo_engine.node. */
  readonly bytes: number
  /** Of rapo_engine.node. */
  readonly sha256?: string
  readonly seconds: number
}

export interface BuiltEngine {
  readonly addon: string
  readonly dir: string
  readonly marker: EngineMarker
  /** When it was built or last chosen by `rapo setup`, in ms. */
  readonly usedAt: number
}

export const engineAddonName = 'rapo_engine.node'

function readMarker(dir: string): BuiltEngine | undefined {
  try {
    const file = join(dir, 'done.json')
    const marker: EngineMarker = JSON.parse(readFileSync(file, 'utf8'))
    const addon = join(dir, engineAddonName)
    if (typeof marker.sources !== 'string' || typeof marker.libtorch?.dir !== 'string') return undefined
    if (statSync(addon).size !== marker.bytes) return undefined
    return { addon, dir, marker, usedAt: statSync(file).mtimeMs }
  } catch {
    return undefined // without a valid marker, the build is not finished
  }
}

/** Every whole engine build in the cache, the one used last first. */
export function listEngines(cache = cacheDir()): BuiltEngine[] {
  const root = join(cache, 'engine')
  if (!existsSync(root)) return []
  return readdirSync(root)
    .map(name => readMarker(join(root, name)))
    .filter(engine => engine !== undefined)
    .sort((a, b) => b.usedAt - a.usedAt)
}

/**
 * The engine built from exactly these sources for this machine, against a libtorch that still exists. If RAPO_LIBTORCH is set,
 * only an engine built against that libtorch.
 */
export function findEngine(
  cache = cacheDir(),
  env: NodeJS.ProcessEnv = process.env,
): BuiltEngine | undefined {
  const sources = hashSources()
  return listEngines(cache).find(engine => !engineMismatch(engine, env, sources))
}

/** The reason why findEngine does not take a build, as a phrase; undefined if it does. */
export function engineMismatch(
  { marker }: BuiltEngine,
  env: NodeJS.ProcessEnv = process.env,
  sources = hashSources(),
): string | undefined {
  const wanted = env.RAPO_LIBTORCH ? realpathOr(env.RAPO_LIBTORCH) : undefined
  const { dir, version } = marker.libtorch
  if (marker.version !== packageVersion) return `built for rapo ${marker.version}, this is ${packageVersion}`
  if (marker.sources !== sources) return 'built from other sources of this version'
  if (marker.platform !== process.platform || marker.arch !== process.arch) {
    return `built for ${marker.platform}-${marker.arch}, this is ${process.platform}-${process.arch}`
  }
  if (wanted !== undefined && dir !== wanted) return `built against ${dir}, RAPO_LIBTORCH names ${wanted}`
  const found = inspectLibtorch(dir)
  if (typeof found === 'string') return `its libtorch is gone: ${found}`
  if (found.version !== version) return `built against libtorch ${version}, in ${dir} is ${found.version} now`
  return undefined
}

/** Directories in the cache without a usable engine: the build was interrupted, or a file was damaged. */
export function listBrokenEngines(cache = cacheDir()): string[] {
  const root = join(cache, 'engine')
  if (!existsSync(root)) return []
  return readdirSync(root)
    .map(name => join(root, name))
    .filter(dir => !readMarker(dir))
}

function realpathOr(path: string): string {
  try {
    return realpathSync(path)
  } catch {
    return resolve(path)
  }
}
