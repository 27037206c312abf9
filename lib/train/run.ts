/** A run's directory: who may write to it, its JSON Lines files, and what a resumed run finds there (docs/files.md). */
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { asIoError, ioGuard } from '../base/files.js'

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
