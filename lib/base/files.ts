/** Writes files completely or not at all, and explains I/O errors. */
import {
  accessSync,
  closeSync,
  constants,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  type Stats,
  statSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { RapoError, reasonOf } from './errors.js'

/**
 * Writes a file, one part after the other. Whatever happens, the file holds either the old content or the new. Links are
 * followed; pipes and devices are written directly. Throws ERR_RAPO_IO.
 */
export function writeWhole(file: string, content: string | Iterable<string>): void {
  const parts = typeof content === 'string' ? [content] : content
  ioGuard(`cannot write ${file}`, () => {
    const found = statOf(file)
    if (found && !found.isFile()) {
      writeParts(file, parts)
      return
    }
    const target = found ? realpathSync(file) : file
    const temporary = `${target}.tmp`
    try {
      writeParts(temporary, parts, fsyncSync)
      renameSync(temporary, target)
    } catch (error) {
      rmSync(temporary, { force: true })
      throw error
    }
  })
}

function writeParts(file: string, parts: Iterable<string>, sync = (_descriptor: number) => {}): void {
  const descriptor = openSync(file, 'w')
  try {
    for (const part of parts) writeFileSync(descriptor, part)
    sync(descriptor)
  } finally {
    closeSync(descriptor)
  }
}

/** Throws ERR_RAPO_IO if writeWhole could not write the file. Call it before the work whose result the file will hold. */
export function checkWritable(file: string): void {
  ioGuard(`cannot write ${file}`, () => {
    const found = statOf(file)
    if (found?.isDirectory()) throw new Error('it is a directory')
    const above = path.dirname(file)
    if (statOf(above)?.isFile()) throw new Error(`${above} is a file`)
    accessSync(found && !found.isFile() ? file : above, constants.W_OK)
  })
}

/**
 * Makes a directory, and those above it, where they are missing. Not by `recursive` of mkdirSync, which never returns under
 * /proc in Node.js 20. Throws ERR_RAPO_IO.
 */
export function makeDirectories(dir: string): void {
  ioGuard(`cannot make the directory ${dir}`, () => makeMissing(path.resolve(dir)))
}

function makeMissing(place: string): void {
  const find = () => statOf(place)
  const found = find()
  if (found?.isDirectory()) return
  if (found) throw new Error(`${place} is a file`)
  const above = path.dirname(place)
  if (above !== place) makeMissing(above)
  try {
    mkdirSync(place)
  } catch (error) {
    // Another process may have made it.
    if (!find()?.isDirectory()) throw error
  }
}

/**
 * Writes a directory under a temporary name, syncs its files and renames it, so that the directory appears complete or not at all.
 * An existing one is replaced. `fill` gets the temporary directory; what it throws is thrown, and nothing is left behind.
 */
export async function writeDirectory(dir: string, fill: (temporary: string) => Promise<void>): Promise<void> {
  const target = path.resolve(dir)
  const temporary = `${target}.tmp`
  try {
    rmSync(temporary, { recursive: true, force: true })
    makeDirectories(temporary)
    await fill(temporary)
    syncTree(temporary)
    rmSync(target, { recursive: true, force: true })
    renameSync(temporary, target)
  } catch (error) {
    rmSync(temporary, { recursive: true, force: true })
    throw error
  }
}

/** Syncs the files below a directory: otherwise a rename could reach the disk before their content does. */
export function syncTree(dir: string): void {
  for (const entry of readdirSync(dir, { withFileTypes: true })) {
    const file = path.join(dir, entry.name)
    if (entry.isDirectory()) {
      syncTree(file)
      continue
    }
    const descriptor = openSync(file, 'r+')
    try {
      fsyncSync(descriptor)
    } finally {
      closeSync(descriptor)
    }
  }
}

export function ioGuard(what: string, body: () => void): void {
  try {
    body()
  } catch (error) {
    if (error instanceof RapoError) throw error
    throw asIoError(what, error)
  }
}

/** ioGuard for asynchronous work. */
export async function io<T>(what: string, body: () => Promise<T>): Promise<T> {
  try {
    return await body()
  } catch (error) {
    throw error instanceof RapoError ? error : asIoError(what, error)
  }
}

export function asIoError(what: string, error: unknown): RapoError {
  return new RapoError('ERR_RAPO_IO', `${what}: ${ioReason(error, what)}`, { cause: error })
}

/** The reason of a failed file operation, for a message that `told` begins. The path is left out if `told` contains it. */
export function ioReason(error: unknown, told: string): string {
  const { code, syscall, path: place } = (error ?? {}) as NodeJS.ErrnoException
  if (code === 'ENOSPC') return 'the disk is full'
  if (code === 'EISDIR') return 'it is a directory'
  const reason = reasonOf(error)
  // A file is written under another name first.
  if (!place || !syscall || !told.includes(place.replace(/\.tmp$/, ''))) return reason
  return reason.replace(`, ${syscall} '${place}'`, '').replace(/^[A-Z0-9]+: /, '')
}

/**
 * What is at a path; undefined where nothing is, also below a file, for which statSync with throwIfNoEntry false throws.
 * Throws ERR_RAPO_IO.
 */
export function statOf(file: string): Stats | undefined {
  try {
    return statSync(file)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined
    throw asIoError(`cannot read ${file}`, error)
  }
}

/** A file's name for messages: a relative name is followed by the absolute path. */
export function withPlace(name: string): string {
  const place = path.resolve(name)
  return place === name ? name : `${name} (${place})`
}
