/** Finds libtorch: RAPO_LIBTORCH, a python3 that imports torch, the system's CMake packages, a private environment. */

import { existsSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { RapoError } from '../base/errors.js'
import { makeDirectories } from '../base/files.js'
import { inspectLibtorch, type TorchDir } from './inspect.js'
import { ask } from './process.js'
import { findNvcc, type Tool } from './tools.js'
import { makeVenv } from './venv.js'

/** The version that is installed into the private environment. */
export const TORCH_VERSION = '2.13.0'
/** Its wheels need at least this Python, on these platforms. */
const WHEEL_PYTHON = [3, 10] as const
const wheelPlatforms = ['linux-x64', 'linux-arm64', 'darwin-arm64', 'win32-x64']
const MINIMUM = [2, 4] as const
/** PyTorch's own index of wheels without CUDA. */
const CPU_INDEX = 'https://download.pytorch.org/whl/cpu'
const CPU_INDEX_TIMEOUT_S = 4

const libtorchSources = ['RAPO_LIBTORCH', 'python3', 'system', 'private'] as const
export type LibtorchSource = (typeof libtorchSources)[number]

export interface Libtorch extends TorchDir {
  readonly source: LibtorchSource
}

/** One place that was examined: the libtorch there, or why there is no usable one. */
export interface Candidate {
  readonly source: LibtorchSource
  readonly found?: Libtorch
  readonly reason?: string
}

export interface LibtorchOptions {
  readonly cache: string
  readonly env: NodeJS.ProcessEnv
  /** Directories of the system's CMake packages, which are examined after CMAKE_PREFIX_PATH. */
  readonly prefixes?: readonly string[]
}

/**
 * Looks for libtorch in a fixed order and installs nothing. Stops at the first one found unless `all` is set (for the doctor).
 * Throws ERR_RAPO_SETUP if RAPO_LIBTORCH is set but not usable, unless `all` is set.
 */
export async function findLibtorch(options: LibtorchOptions, all = false): Promise<Candidate[]> {
  const candidates: Candidate[] = []
  for (const source of libtorchSources) {
    const result = await look[source](options)
    if (typeof result === 'string') {
      candidates.push({ source, reason: result })
      if (source === 'RAPO_LIBTORCH' && options.env.RAPO_LIBTORCH && !all) {
        throw new RapoError(
          'ERR_RAPO_SETUP',
          `RAPO_LIBTORCH=${options.env.RAPO_LIBTORCH} cannot be used: ${result}`,
        )
      }
      continue
    }
    candidates.push({ source, found: { source, ...result } })
    if (!all) break
  }
  return candidates
}

const look: Record<LibtorchSource, (options: LibtorchOptions) => Promise<TorchDir | string>> = {
  async RAPO_LIBTORCH({ env }) {
    return env.RAPO_LIBTORCH ? usable(inspectLibtorch(resolve(env.RAPO_LIBTORCH)), env) : 'not set'
  },

  async python3({ env }) {
    const script = 'import torch; print(torch.utils.cmake_prefix_path)'
    // A first import from a cold disk can take a minute.
    const answer = await ask('python3', ['-c', script], { env, timeoutMs: 120_000 })
    if (!answer.ok) return answer.problem
    const prefix = answer.stdout.trim().split('\n').at(-1)!
    return usable(inspectLibtorch(join(prefix, '..', '..')), env)
  },

  async system({ env, prefixes = ['/usr/local', '/usr', '/opt/homebrew'] }) {
    const all = [...(env.CMAKE_PREFIX_PATH ?? '').split(':').filter(Boolean), ...prefixes]
    const found = all.map(inspectLibtorch).filter(result => typeof result !== 'string')
    const results = await Promise.all(found.map(result => usable(result, env)))
    return (
      results.find(result => typeof result !== 'string') ??
      results[0] ??
      `no CMake package Torch under ${all.join(', ')}`
    )
  },

  async private({ cache, env }) {
    const dir = privateDir(cache)
    if (!existsSync(dir)) return 'not installed yet; `rapo setup` does it where nothing else is found'
    if (!existsSync(join(dir, DONE))) return `${dir} is an interrupted installation`
    const site = sitePackages(dir)
    return site ? usable(inspectLibtorch(join(site, 'torch')), env) : `${dir} holds no torch`
  },
}

/** The libtorch; otherwise the reason why the engine cannot be compiled against it. */
async function usable(found: TorchDir | string, env: NodeJS.ProcessEnv): Promise<TorchDir | string> {
  if (typeof found === 'string') return found
  if (isOlder(found.version, MINIMUM)) {
    return `${found.version} in ${found.dir} is older than ${MINIMUM.join('.')}`
  }
  if (!found.cuda) return found
  const { problem } = await findNvcc(env)
  if (problem === undefined) return found
  return `${found.version} in ${found.dir} is built with CUDA, so that compiling against it takes nvcc: ${problem}; put the bin directory of the CUDA toolkit on PATH, or let RAPO_LIBTORCH name a libtorch without CUDA`
}

function isOlder(version: string, [least, leastMinor]: readonly [number, number]): boolean {
  const [major = 0, minor = 0] = version.split('.').map(part => Number.parseInt(part, 10))
  return major < least || (major === least && minor < leastMinor)
}

/** The machine's python3, if torch can be installed with it: torch has no wheels for older versions. */
export function torchPython(python: Tool): Tool {
  const { version } = python
  if (version === undefined || !isOlder(version, WHEEL_PYTHON)) return python
  return {
    problem: `${version} is older than ${WHEEL_PYTHON.join('.')}, the least for torch ${TORCH_VERSION}`,
  }
}

/** The reason why pip has no torch for a machine; undefined if it has. glibc: its version; undefined for another C library. */
export function lackOfWheel(
  { platform, arch, glibc }: { platform: string; arch: string; glibc: string | undefined } = thisMachine(),
): string | undefined {
  const isMusl = platform === 'linux' && glibc === undefined
  if (wheelPlatforms.includes(`${platform}-${arch}`) && !isMusl) return undefined
  const advice = `let RAPO_LIBTORCH name a libtorch >= ${MINIMUM.join('.')}, or put a python3 on PATH that imports such a torch`
  return `torch ${TORCH_VERSION} cannot be installed: there is no wheel of it for ${platform}-${arch}${isMusl ? ' without glibc (musl)' : ''}; ${advice}`
}

function thisMachine() {
  const report = process.report?.getReport() as { header?: { glibcVersionRuntime?: string } } | undefined
  return { platform: process.platform, arch: process.arch, glibc: report?.header?.glibcVersionRuntime }
}

/** A marker, written when an installation is complete. */
const DONE = 'rapo-done'

function privateDir(cache: string): string {
  return join(cache, `torch-${TORCH_VERSION}`)
}

function sitePackages(venv: string): string | undefined {
  for (const lib of ['lib64', 'lib']) {
    const names = existsSync(join(venv, lib)) ? readdirSync(join(venv, lib)) : []
    for (const name of names) {
      const site = join(venv, lib, name, 'site-packages')
      if (existsSync(join(site, 'torch'))) return site
    }
  }
  return undefined
}

/**
 * Installs torch into a virtual environment in the cache. The caller holds the cache's lock. Throws ERR_RAPO_SETUP with pip's
 * last lines if that fails.
 */
export async function installLibtorch(
  options: LibtorchOptions & { onMessage: (message: string) => void; signal?: AbortSignal },
): Promise<Libtorch> {
  const { cache, env, onMessage } = options
  const dir = privateDir(cache)
  const log = `${dir}.log`
  rmSync(dir, { recursive: true, force: true })
  makeDirectories(cache)
  writeFileSync(log, '')
  const run = { env, log, ...(options.signal ? { signal: options.signal } : {}) }
  const install = await makeVenv(dir, run)
  const torch = `torch==${TORCH_VERSION}`
  const [gpu, nvcc] = await Promise.all([hasNvidiaGpu(env), findNvcc(env)])
  // Only on Linux does pip take a build with CUDA by default.
  const cpuOnly = process.platform === 'linux' && !(gpu && nvcc.version)
  const index = cpuOnly ? await cpuIndex(env) : []
  const kind = index.length ? "from PyTorch's CPU index" : "from pip's own index"
  const warning =
    cpuOnly && !index.length ? `; ${CPU_INDEX} did not answer, so this may bring the CUDA build` : ''
  const idle =
    cpuOnly && gpu ? `; the GPU is not used, since a torch with CUDA takes nvcc: ${nvcc.problem}` : ''
  onMessage(`installing ${torch} ${kind} into ${dir}${idle}${warning}`)
  // Without torch's Python dependencies: only its libraries and headers are used.
  await install(torch, [torch, '--no-deps', ...index])

  const site = sitePackages(dir)
  const found = await usable(site ? inspectLibtorch(join(site, 'torch')) : `${dir} holds no torch`, env)
  if (typeof found === 'string') {
    throw new RapoError(
      'ERR_RAPO_SETUP',
      `pip installed a torch that cannot be used: ${found}; the log: ${log}`,
    )
  }
  if (found.cuda) {
    const advice = gpu ? '' : '; RAPO_LIBTORCH can name a libtorch without CUDA instead'
    onMessage(`installing the CUDA libraries that this torch needs, some GB${advice}`)
    await install(torch, [torch])
  }
  writeFileSync(join(dir, DONE), `${found.version}\n`)
  return { source: 'private', ...found }
}

async function hasNvidiaGpu(env: NodeJS.ProcessEnv): Promise<boolean> {
  const { ok, stdout } = await ask('nvidia-smi', ['-L'], { env })
  return ok && /^GPU \d/m.test(stdout)
}

/** pip's arguments for PyTorch's own index of wheels without CUDA; none where that does not answer. */
export async function cpuIndex(env: NodeJS.ProcessEnv): Promise<string[]> {
  // Tested with Python, which uses the same proxy settings as pip.
  const script = `import urllib.request; urllib.request.urlopen(${JSON.stringify(`${CPU_INDEX}/torch/`)}, timeout=${CPU_INDEX_TIMEOUT_S})`
  const { ok } = await ask('python3', ['-c', script], { env, timeoutMs: (CPU_INDEX_TIMEOUT_S + 1) * 1000 })
  return ok ? ['--index-url', CPU_INDEX] : []
}
