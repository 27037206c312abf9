/** Files that are written whole or not at all, and what an I/O error says. */
import {
  accessSync,
  closeSync,
  constants,
  fsyncSync,
  openSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { RapoError, reasonOf } from './errors.js'

/**
 * Writes a file, one part after the other, so that whatever happens it holds either the old content or the new; through
 * links, and straight into what is no file (a pipe, a device). Throws ERR_RAPO_IO.
 */
export function writeWhole(file: string, content: string | Iterable<string>): void {
  const parts = typeof content === 'string' ? [content] : content
  ioGuard(`cannot write ${file}`, () => {
    const found = statSync(file, { throwIfNoEntry: false })
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

/** Throws ERR_RAPO_IO where writeWhole could not write a file: before the work whose result it is to hold. */
export function checkWritable(file: string): void {
  ioGuard(`cannot write ${file}`, () => {
    const found = statSync(file, { throwIfNoEntry: false })
    if (found?.isDirectory()) throw new Error('it is a directory')
    accessSync(found && !found.isFile() ? file : path.dirname(file), constants.W_OK)
  })
}

export function ioGuard(what: string, body: () => void): void {
  try {
    body()
  } catch (error) {
    if (error instanceof RapoError) throw error
    throw asIoError(what, error)
  }
}

/** ioGuard for what takes time. */
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

/** Why an operation on a file failed, behind a text that names the file: without the path, where `told` has it. */
export function ioReason(error: unknown, told: string): string {
  const { code, syscall, path: place } = (error ?? {}) as NodeJS.ErrnoException
  if (code === 'ENOSPC') return 'the disk is full'
  if (code === 'EISDIR') return 'it is a directory'
  const reason = reasonOf(error)
  // A file is written under another name first.
  if (!place || !syscall || !told.includes(place.replace(/\.tmp$/, ''))) return reason
  return reason.replace(`, ${syscall} '${place}'`, '').replace(/^[A-Z0-9]+: /, '')
}

/** A name of a file, with the absolute path where the name is relative: for messages. */
export function withPlace(name: string): string {
  const place = path.resolve(name)
  return place === name ? name : `${name} (${place})`
}
