/** `rapo doctor`: reports what this machine has, what set-up has installed, and what is missing. Changes nothing. */
import { existsSync, readdirSync, statSync } from 'node:fs'
import { availableParallelism, cpus, freemem, release, totalmem } from 'node:os'
import { join } from 'node:path'
import { packageRoot, packageVersion } from '../base/package.js'
import type { CudaInfo } from '../loss/kernels.js'
import { explainLoadFailure, findFault, locateCudaPackage, locateKernels } from '../setup/addons.js'
import { cacheDir, engineMismatch, listBrokenEngines, listEngines } from '../setup/cache.js'
import { locateEngine } from '../setup/engine-addon.js'
import { type Candidate, findLibtorch } from '../setup/libtorch.js'
import { ask } from '../setup/process.js'
import { findTools, type Tools } from '../setup/tools.js'

export interface AddonReport {
  readonly file?: string
  /** Details of a loaded addon, such as the instruction set that it chose. */
  readonly info?: Readonly<Record<string, unknown>>
  /** Why the addon is missing or does not load. */
  readonly problem?: string
}

export interface DoctorReport {
  /** Whether both addons load. */
  readonly ok: boolean
  readonly rapo: { readonly version: string; readonly root: string }
  readonly node: string
  readonly platform: string
  readonly cpu: { readonly model: string; readonly cores: number }
  /** Bytes. */
  readonly memory: { readonly total: number; readonly available: number }
  /** One line per GPU, as nvidia-smi names it. */
  readonly gpus: readonly string[]
  readonly tools: Tools
  readonly kernels: AddonReport
  /** CUDA of the kernels: its devices, or what is missing. Absent if the kernels do not load. */
  readonly cuda?: CudaInfo & {
    /** The package with the library for this platform. */
    readonly package: { readonly name: string; readonly library?: string }
  }
  /** Every place where set-up looks for libtorch, in this order. */
  readonly libtorch: readonly Candidate[]
  readonly engine: AddonReport & {
    readonly builds: readonly {
      readonly addon: string
      readonly version: string
      readonly libtorch: string
      /** Why it is not used, as a phrase. */
      readonly mismatch?: string
    }[]
    /** Directories of builds that were cut off or damaged; the next set-up deletes them. */
    readonly broken: readonly string[]
  }
  readonly cache: {
    readonly dir: string
    /** Bytes by entry. */
    readonly entries: Readonly<Record<string, number>>
  }
}

/** Makes the report. Addons are loaded in a separate process, so that an addon that crashes is reported, too. */
export async function doctor(env: NodeJS.ProcessEnv = process.env): Promise<DoctorReport> {
  const cache = cacheDir(env)
  const [tools, libtorch, kernels, cuda, engine, gpus] = await Promise.all([
    findTools(env),
    findLibtorch({ cache, env }, true),
    probe(locateKernels, 'kernels', env),
    probeCuda(env),
    probe(locateEngine, 'engine', env),
    ask('nvidia-smi', ['-L'], { env }),
  ])
  return {
    ok: !kernels.problem && !engine.problem,
    rapo: { version: packageVersion, root: packageRoot },
    node: process.version,
    platform: `${process.platform}-${process.arch} ${release()}`,
    cpu: { model: cpus()[0]?.model.trim() ?? 'unknown', cores: availableParallelism() },
    memory: { total: totalmem(), available: process.availableMemory?.() ?? freemem() },
    gpus: gpus.ok ? gpus.stdout.trim().split('\n').filter(Boolean) : [],
    tools,
    kernels,
    ...(cuda && !kernels.problem ? { cuda } : {}),
    libtorch,
    engine: {
      ...engine,
      builds: listEngines(cache).map(build => {
        const { addon, marker } = build
        const mismatch = engineMismatch(build, env)
        return {
          addon,
          version: marker.version,
          libtorch: `${marker.libtorch.version} in ${marker.libtorch.dir}`,
          ...(mismatch === undefined ? {} : { mismatch }),
        }
      }),
      broken: listBrokenEngines(cache),
    },
    cache: { dir: cache, entries: sizes(cache) },
  }
}

/** The addons' details, as values or functions. */
const told = ['isa', 'isas', 'threads', 'libtorchVersion', 'libtorchCuda']

async function probe(
  locate: () => string,
  name: 'kernels' | 'engine',
  env: NodeJS.ProcessEnv,
): Promise<AddonReport> {
  let file: string
  try {
    file = locate()
  } catch (error) {
    return { problem: (error as Error).message }
  }
  const fault = findFault(file)
  if (fault)
    return { file, problem: `the file is damaged: ${fault}; ${explainLoadFailure(name, 'file too short')}` }
  const script = `
    try {
      const addon = require(process.argv[1])
      const told = ${JSON.stringify(told)}.filter(name => name in addon)
      const value = name => typeof addon[name] === 'function' ? addon[name]() : addon[name]
      console.log(JSON.stringify(Object.fromEntries(told.map(name => [name, value(name)]))))
    } catch (error) {
      console.error(error.message.split('\\n')[0])
      process.exit(1)
    }`
  const answer = await ask(process.execPath, ['-e', script, file], { env, timeoutMs: 60_000 })
  if (!answer.ok) return { file, problem: `${answer.problem}; ${explainLoadFailure(name, answer.problem)}` }
  const info = JSON.parse(answer.stdout)
  if (typeof info.isa === 'string') {
    const why = env.RAPO_KERNELS_ISA ? 'RAPO_KERNELS_ISA chose it' : 'the fastest that this processor has'
    info.isa = `${info.isa}: ${why}`
  }
  return { file, info }
}

/** CUDA as the kernels see it, asked in a separate process; undefined if the kernels do not load. */
async function probeCuda(env: NodeJS.ProcessEnv): Promise<DoctorReport['cuda']> {
  let file: string
  try {
    file = locateKernels()
  } catch {
    return undefined
  }
  const found = locateCudaPackage()
  const script = `
    const addon = require(process.argv[1])
    if (process.argv[2]) addon.setCudaLibrary(process.argv[2])
    const { available, lacks, reason, searched, devices } = addon.cudaInfo()
    console.log(JSON.stringify(available ? { available, devices, searched } : { available, lacks, reason, searched }))`
  const args = ['-e', script, file, found.library ?? '']
  const answer = await ask(process.execPath, args, { env, timeoutMs: 60_000 })
  const reason = `looking for CUDA failed: ${answer.problem}`
  const info: CudaInfo = answer.ok
    ? JSON.parse(answer.stdout)
    : { available: false, lacks: 'library', reason, searched: [] }
  return { ...info, package: found }
}

function sizes(cache: string): Record<string, number> {
  if (!existsSync(cache)) return {}
  return Object.fromEntries(readdirSync(cache).map(name => [name, sizeOf(join(cache, name))]))
}

function sizeOf(path: string): number {
  const stat = statSync(path, { throwIfNoEntry: false })
  if (!stat?.isDirectory()) return stat?.size ?? 0
  let bytes = 0
  for (const entry of readdirSync(path, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue
    bytes += statSync(join(entry.parentPath ?? entry.path, entry.name), { throwIfNoEntry: false })?.size ?? 0
  }
  return bytes
}

/** The report as text. */
export function formatDoctor(report: DoctorReport): string {
  const { tools, cache } = report
  const rows: [string, string][] = [
    ['rapo', `${report.rapo.version} in ${report.rapo.root}`],
    ['node', `${report.node} on ${report.platform}`],
    ['cpu', `${report.cpu.cores} × ${report.cpu.model}`],
    ['memory', `${gigabytes(report.memory.available)} available of ${gigabytes(report.memory.total)}`],
    ['gpu', report.gpus.join('\n') || 'no NVIDIA GPU'],
  ]
  for (const [name, tool] of Object.entries(tools)) {
    rows.push([
      name,
      tool.version ?? (name === 'ninja' ? `${tool.problem} (not needed)` : `✗ ${tool.problem}`),
    ])
  }
  rows.push(['kernels', describeAddon(report.kernels)])
  if (report.cuda) rows.push(['cuda', describeCuda(report.cuda)])
  const first = report.libtorch.find(candidate => candidate.found)
  for (const candidate of report.libtorch) {
    const { found } = candidate
    const text = found
      ? `${found.version}${found.cuda ? ', with CUDA' : ''} in ${found.dir}${candidate === first ? '' : ' (comes after)'}`
      : `– ${candidate.reason}`
    rows.push([candidate === report.libtorch[0] ? 'libtorch' : '', `${candidate.source}: ${text}`])
  }
  rows.push(['engine', describeAddon(report.engine)])
  for (const build of report.engine.builds) {
    if (build.addon !== report.engine.file) {
      const why = build.mismatch === undefined ? '' : `; not used: ${build.mismatch}`
      rows.push(['', `another build: rapo ${build.version}, libtorch ${build.libtorch}${why}`])
    }
  }
  for (const dir of report.engine.broken) rows.push(['', `${dir}: an unfinished or damaged build`])
  rows.push(['cache', cache.dir])
  for (const [name, bytes] of Object.entries(cache.entries)) rows.push(['', `${gigabytes(bytes)}  ${name}`])
  const lines = rows.flatMap(([name, text]) =>
    text.split('\n').map((line, i) => `${(i ? '' : name).padEnd(10)}${line}`.trimEnd()),
  )
  const verdict = report.ok ? 'Everything is in place.' : 'Not ready; the lines with ✗ say why.'
  return [...lines, '', verdict].join('\n')
}

function describeAddon(addon: AddonReport): string {
  if (addon.problem) return `✗ ${addon.file ? `${addon.file}\n  ` : ''}${addon.problem}`
  const info = Object.entries(addon.info ?? {}).map(
    ([name, value]) => `${name} ${Array.isArray(value) ? value.join(' ') : value}`,
  )
  return `loads: ${addon.file}${info.length ? ` (${info.join(', ')})` : ''}`
}

function describeCuda(cuda: NonNullable<DoctorReport['cuda']>): string {
  const searched = cuda.searched.map(({ library, problem = 'loads' }) => `${library}: ${problem}`)
  if (cuda.available) {
    return [
      ...cuda.devices.map(({ name, capability }) => `${name}, compute capability ${capability}`),
      ...searched,
    ].join('\n')
  }
  if (cuda.lacks !== 'library') return [`off, no ${cuda.lacks}: ${cuda.reason}`, ...searched].join('\n')
  const { name, library } = cuda.package
  return [
    'off: there is no library of the CUDA kernels',
    ...searched,
    `the package ${name} brings the library; ${library ? 'the package is installed' : 'it is not installed'}`,
    'in a clone, npm run build:cuda builds the library; this needs nvcc',
  ].join('\n')
}

function gigabytes(bytes: number): string {
  if (bytes < 1e5) return `${Math.ceil(bytes / 1e3)} kB`
  return bytes < 1e8 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`
}
