/** A run's directory: who may write to it, its JSON Lines files, and what a resumed run finds there (docs/files.md). */
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { RapoError } from './errors.js'

const locks = { train: 'run.lock', eval: 'eval.lock' } as const
/** Lock files of this process. */
const held = new Set<string>()
const runFiles = [
  'config.yaml',
  'metrics.jsonl',
  'samples.jsonl',
  'checkpoints',
  'eval.json',
  'eval-samples.jsonl',
  'eval-progress.jsonl',
  'tensorboard',
]

/**
 * Makes the directory for a new run and checks that it holds none yet (ERR_RAPO_CONFIG), unless that one may be
 * replaced. Removes nothing.
 */
export function createRunDir(dir: string, mayReplace: boolean): void {
  const isTaken = ['metrics.jsonl', 'checkpoints'].some(name => existsSync(path.join(dir, name)))
  if (isTaken && !mayReplace) {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `${dir} holds a run already: continue it with \`rapo train --resume ${dir}\`, choose another --run.output, or replace it with --overwrite`,
    )
  }
  ioGuard(`cannot make the run directory ${dir}`, () => mkdirSync(dir, { recursive: true }))
}

/** Removes an earlier run's files, and nothing else that is in the directory. */
export function clearRun(dir: string): void {
  for (const name of runFiles) rmSync(path.join(dir, name), { recursive: true, force: true })
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
    const holder = Number(readFileSync(file, 'utf8'))
    if (held.has(file) || isAlive(holder)) {
      throw new RapoError(
        'ERR_RAPO_CONFIG',
        `${dir} is in use by process ${holder}; if that is no \`rapo ${what}\`, remove ${file}`,
      )
    }
    unlinkSync(file)
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
  const text = values.map(value => `${JSON.stringify(value)}\n`).join('')
  ioGuard(`cannot write ${file}`, () => appendFileSync(file, text))
}

/** Drops the lines of later steps, and a last line that a killed process left half-written. */
export function truncateJsonLines(file: string, lastStep: number): void {
  if (!existsSync(file)) return
  const kept = readFileSync(file, 'utf8')
    .split('\n')
    .filter(line => {
      try {
        return (JSON.parse(line) as { step: number }).step <= lastStep
      } catch {
        return false
      }
    })
  writeWhole(file, kept.map(line => `${line}\n`).join(''))
}

/** Writes a file so that whatever happens it holds either the old content or the new. Throws ERR_RAPO_IO. */
export function writeWhole(file: string, content: string): void {
  const temporary = `${file}.tmp`
  ioGuard(`cannot write ${file}`, () => {
    try {
      writeFileSync(temporary, content, { flush: true })
      renameSync(temporary, file)
    } catch (error) {
      rmSync(temporary, { force: true })
      throw error
    }
  })
}

function ioGuard(what: string, body: () => void): void {
  try {
    body()
  } catch (error) {
    throw asIoError(what, error)
  }
}

export function asIoError(what: string, error: unknown): RapoError {
  const isFull = (error as NodeJS.ErrnoException).code === 'ENOSPC'
  const why = isFull ? 'the disk is full' : (error as Error).message
  return new RapoError('ERR_RAPO_IO', `${what}: ${why}`, { cause: error })
}
