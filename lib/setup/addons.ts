/** The only file that loads native addons. Works from lib/ (tsx), from dist/, in bundles, and in worker threads. */
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'
import { RapoError } from '../base/errors.js'
import { isInPackage, packageRoot } from '../base/package.js'

/** The functions that both addons have. lib/loss/kernels.ts and lib/model/engine.ts give the other functions their types. */
export interface Addon {
  setErrorClass(errorClass: typeof RapoError): void
  setEnvironment(name: string, value: string): void
  setCudaLibrary(file: string): void
  readonly [name: string]: unknown
}

/** The raw functions of bindings/kernels.cpp. */
export type KernelsAddon = Addon

// scripts/build.mjs removes this line for dist/: bundlers and tracers follow only CommonJS's own require.
const require = createRequire(import.meta.url || process.execPath)
let kernels: KernelsAddon | undefined

/**
 * The kernels addon: the file that RAPO_KERNELS_ADDON names; otherwise that of build/Release or of the package's prebuilds.
 * Throws ERR_RAPO_SETUP, with the fix, if there is none for this platform or it cannot be loaded.
 */
export function loadKernels(): KernelsAddon {
  if (kernels) return kernels
  const file = locateKernels()
  kernels = loadAddon('kernels', file, readRecord(file))
  const { library } = locateCudaPackage()
  if (library) kernels.setCudaLibrary(library)
  return kernels
}

/** The package with the CUDA kernels for this platform, and its library if it is installed. */
export function locateCudaPackage(): { name: string; library?: string } {
  const name = `rapo-cuda-${process.platform}-${process.arch}`
  try {
    return { name, library: require.resolve(`${name}/librapo_cuda.so`) }
  } catch {
    return { name }
  }
}

/** The file that loadKernels() loads. Throws ERR_RAPO_SETUP if there is none. */
export function locateKernels(): string {
  if (process.env.RAPO_KERNELS_ADDON) return resolve(process.env.RAPO_KERNELS_ADDON)
  requirePackage('kernels')
  try {
    return require('node-gyp-build').path(packageRoot)
  } catch (cause) {
    throw new RapoError('ERR_RAPO_SETUP', explainMissingKernels(cause), { cause })
  }
}

/** Throws ERR_RAPO_SETUP in a bundle: a file beside the bundle is not rapo's addon, whatever its name. */
export function requirePackage(name: 'kernels' | 'engine'): void {
  if (isInPackage()) return
  throw new RapoError(
    'ERR_RAPO_SETUP',
    `the ${name} addon is not beside this code, which a bundler took out of the package rapo: mark rapo external ` +
      `(esbuild: --external:rapo; README names other bundlers), or name the addon's file in RAPO_${name.toUpperCase()}_ADDON`,
  )
}

/** The platforms for which rapo has prebuilt addons. */
const prebuiltPlatforms = [
  ...['linux-x64', 'linux-arm64', 'darwin-x64', 'darwin-arm64', 'win32-x64', 'win32-arm64'],
]

/** The reason why there is no kernels addon for a platform, and the command that builds one. */
export function explainMissingKernels(
  cause?: unknown,
  platform = `${process.platform}-${process.arch}`,
): string {
  const why = cause === undefined ? '' : ` (${firstLine(cause)})`
  if ((cause as NodeJS.ErrnoException | undefined)?.code === 'ERR_ACCESS_DENIED') {
    return `Node.js was not permitted to look for the kernels addon${why}: it needs --allow-addons, and --allow-fs-read for ${packageRoot} and /etc/alpine-release`
  }
  if (!prebuiltPlatforms.includes(platform)) {
    return `rapo comes prebuilt for ${prebuiltPlatforms.join(', ')}, not for ${platform}; ${buildKernels()}`
  }
  const refetch = isClone() ? '' : ': the package is not whole; `npm install --force rapo` fetches it anew'
  return `the kernels addon for ${platform} is missing from ${packageRoot}, which has ${listPrebuilds()}${why}${refetch}; ${buildKernels()}`
}

function listPrebuilds(): string {
  try {
    // @vercel/nft, which Next.js and Vercel use, includes a directory whose path is written out in this form.
    const found = readdirSync(join(import.meta.dirname, '../../prebuilds'))
    if (found.length > 0) return `prebuilds for ${found.join(', ')}`
  } catch {} // there is no such directory
  return 'no prebuilds'
}

/** A clone has the files for developing rapo; an installed package does not. */
const isClone = () => existsSync(join(packageRoot, 'scripts'))
const buildKernels = () => {
  const command = isClone() ? 'npm run build:kernels' : 'npx cmake-js build -O build -T rapo_kernels'
  return `\`${command}\` in ${packageRoot} compiles it (needs a C++17 compiler and CMake >= 3.19)`
}

/**
 * The meaning of a complaint of the dynamic linker or of Node about an addon, and the command that fixes it.
 * @param machine the C library of this process; glibc is undefined for another one, such as musl
 */
export function explainLoadFailure(
  name: 'kernels' | 'engine',
  complaint: string,
  machine: { readonly glibc: string | undefined } = { glibc: glibcVersion() },
): string {
  const anew = name === 'engine' ? 'run `npx rapo setup --force`' : buildKernels()
  if (
    /loading addons is disabled|ERR_DLOPEN_DISABLED|Access to this API has been restricted/.test(complaint)
  ) {
    return 'start Node.js without --no-addons, and under --permission with --allow-addons'
  }
  if (/failed to map segment/.test(complaint)) {
    return 'the file system that it lies on may be mounted noexec: install rapo on another, or mount it with exec'
  }
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
    return `the file is damaged, or for another platform than ${process.platform}-${process.arch}: ${refetch(name)}`
  }
  return anew
}

/** The commands that replace a damaged addon. */
function refetch(name: 'kernels' | 'engine'): string {
  if (name === 'engine') return 'run `npx rapo setup --force`'
  return `${isClone() ? '' : '`npm install --force rapo` fetches it anew, or '}${buildKernels()}`
}

function glibcVersion(): string | undefined {
  return (process.report?.getReport() as { header?: { glibcVersionRuntime?: string } } | undefined)?.header
    ?.glibcVersionRuntime
}

/** An addon's file as it was built. */
export interface FileRecord {
  readonly bytes: number
  readonly sha256: string
}

/** The record that a builder writes beside the built file. */
export function describeFile(file: string): FileRecord {
  const content = readFileSync(file)
  return { bytes: content.length, sha256: hash(content) }
}

/** The record that scripts/prebuilds.mjs wrote beside an addon; undefined if the addon was built otherwise. */
function readRecord(file: string): FileRecord | undefined {
  try {
    return JSON.parse(readFileSync(file.replace(/\.node$/, '.json'), 'utf8'))
  } catch {
    return undefined
  }
}

/** Loads an addon. Throws ERR_RAPO_SETUP, with the fix, if the file is damaged or cannot be loaded. */
export function loadAddon(name: 'kernels' | 'engine', file: string, record?: Partial<FileRecord>): Addon {
  const fault = findFault(file, record)
  if (fault) {
    throw new RapoError('ERR_RAPO_SETUP', `the ${name} addon ${file} is damaged: ${fault}; ${refetch(name)}`)
  }
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

/**
 * Why a file is not the one that was built. Must be checked before loading, since the dynamic linker crashes on a truncated
 * file.
 */
export function findFault(file: string, record: Partial<FileRecord> = {}): string | undefined {
  let content: Buffer
  try {
    content = readFileSync(file)
  } catch {
    return undefined // the dynamic linker says why
  }
  const { bytes = endOfElf(content), sha256 } = record
  if (content.length < bytes) return `it has ${content.length} bytes of ${bytes}`
  if (sha256 !== undefined && hash(content) !== sha256) {
    return 'its content is not what was built'
  }
  return undefined
}

const hash = (content: Buffer) => createHash('sha256').update(content).digest('hex')

/** The end of the section headers, which are the last part of an ELF file; 0 for other formats. */
function endOfElf(content: Buffer): number {
  if (content.length < 64 || content.readUInt32BE(0) !== 0x7f454c46) return 0
  return Number(content.readBigUInt64LE(40)) + content.readUInt16LE(58) * content.readUInt16LE(60)
}

function firstLine(error: unknown): string {
  return String(error instanceof Error ? error.message : error).split('\n')[0] ?? ''
}
