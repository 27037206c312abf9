/** A run's directory: who may write to it, its JSON Lines files, and what a resumed run finds there (docs/files.md). */
import {
  accessSync,
  appendFileSync,
  closeSync,
  constants,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'

const locks = { train: 'run.lock', eval: 'eval.lock' } as const
/** Lock files of this process. */
const held = new Set<string>()
const measurementFiles = ['eval.json', 'eval-samples.jsonl', 'eval-progress.jsonl']
const runFiles = [
  ...['config.yaml', 'metrics.jsonl', 'samples.jsonl', 'checkpoints', 'tensorboard'],
  ...measurementFiles,
]

/**
 * Makes the directory for a new run and checks that it holds none yet (ERR_RAPO_CONFIG), unless that one may be
 * replaced. Removes nothing.
 */
export function createRunDir(dir: string, mayReplace: boolean): void {
  const isThere = (name: string) => existsSync(path.join(dir, name))
  const isTaken = ['metrics.jsonl', 'checkpoints'].some(isThere)
  if (!mayReplace && (isTaken || measurementFiles.some(isThere))) {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      isTaken
        ? `${dir} holds a run already: continue it with \`rapo train --resume ${dir}\`, choose another --run.output, or replace it with --overwrite`
        : `${dir} holds a measurement already: choose another --run.output, or replace it with --overwrite`,
    )
  }
  ioGuard(`cannot make the run directory ${dir}`, () => mkdirSync(dir, { recursive: true }))
}

/** Removes an earlier run's files, and nothing else that is in the directory. Throws ERR_RAPO_IO. */
export function clearRun(dir: string): void {
  ioGuard(`cannot replace the run in ${dir}`, () => {
    for (const name of runFiles) rmSync(path.join(dir, name), { recursive: true, force: true })
  })
}

/**
 * Makes this the only run that trains, or the only measurement that writes, in the directory. A lock left by a process
 * that is gone is taken over; one held by a living process throws ERR_RAPO_CONFIG. Returns the release.
 */
export function lockRun(dir: string, what: keyof typeof locks): () => void {
  const file = path.resolve(dir, locks[what])
  for (;;) {
    try {
      writeFileSync(file, String(process.pid), { flag: 'wx' })
      held.add(file)
      return () => {
        held.delete(file)
        rmSync(file, { force: true })
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw asIoError(`cannot write ${file}`, error)
    }
    ioGuard(`cannot take over ${file}`, () => dropStaleLock(dir, file, what))
  }
}

/** Removes a lock whose process is gone, unless another process has just done so; throws where it is held. */
function dropStaleLock(dir: string, file: string, what: string): void {
  const refuse = (holder: number) => {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `${dir} is in use by process ${holder}; if that is no \`rapo ${what}\`, remove ${file}`,
    )
  }
  const holder = readHolder(file)
  if (holder === undefined) return
  if (held.has(file) || isAlive(holder)) refuse(holder)
  // Moved before it is removed: what another process took over since then is found to be its, and put back.
  const moved = `${file}.${process.pid}`
  try {
    renameSync(file, moved)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return
    throw error
  }
  const found = readHolder(moved)
  if (found !== undefined && found !== holder) {
    renameSync(moved, file)
    refuse(found)
  }
  rmSync(moved, { force: true })
}

/** Undefined where the lock is gone. One that its process has made and not filled yet is waited for. */
function readHolder(file: string): number | undefined {
  for (let tries = 0; ; tries++) {
    const text = existsSync(file) ? readFileSync(file, 'utf8') : undefined
    if (text !== '' || tries === 20) return text === undefined ? undefined : Number(text)
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10)
  }
}

function isAlive(pid: number): boolean {
  if (!(pid > 0) || pid === process.pid) return false
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

/** Appends objects as lines. Throws ERR_RAPO_IO. */
export function appendJsonLines(file: string, values: readonly object[]): void {
  const text = [...toJsonLines(values)].join('')
  ioGuard(`cannot write ${file}`, () => appendFileSync(file, text))
}

/** Drops the lines of later steps, and a last line that a killed process left half-written. */
export function truncateJsonLines(file: string, lastStep: number): void {
  if (!existsSync(file)) return
  writeWhole(file, linesUpTo(lastStep, readFileSync(file)))
}

function* linesUpTo(lastStep: number, content: Buffer): Iterable<string> {
  for (let start = 0, end: number; start < content.length; start = end + 1) {
    end = content.indexOf(0x0a, start)
    if (end < 0) end = content.length
    const line = content.toString('utf8', start, end)
    if (stepOf(line) <= lastStep) yield `${line}\n`
  }
}

function stepOf(line: string): number {
  try {
    return (JSON.parse(line) as { step: number }).step
  } catch {
    return Number.NaN
  }
}

/** Objects as lines, one at a time: together they may be longer than a text can be. */
export function* toJsonLines(values: Iterable<object>): Iterable<string> {
  for (const value of values) yield `${JSON.stringify(value)}\n`
}

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

function ioGuard(what: string, body: () => void): void {
  try {
    body()
  } catch (error) {
    if (error instanceof RapoError) throw error
    throw asIoError(what, error)
  }
}

export function asIoError(what: string, error: unknown): RapoError {
  const isFull = (error as NodeJS.ErrnoException).code === 'ENOSPC'
  const why = isFull ? 'the disk is full' : (error as Error).message
  return new RapoError('ERR_RAPO_IO', `${what}: ${why}`, { cause: error })
}
