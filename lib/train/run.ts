/** A run's directory: its lock, its JSON Lines files, and their state when a run is resumed (docs/files.md). */
import { existsSync, readdirSync, rmSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { ioGuard, makeDirectories, statOf } from '../base/files.js'
import { acquireLock, type Lock, type LockTimes } from '../base/lock.js'
import { readConfigFile } from '../config/file.js'

const locks = { train: 'run.lock', eval: 'eval.lock' } as const
const measurementFiles = ['eval.json', 'eval-samples.jsonl', 'eval-progress.jsonl']
const runFiles = [
  ...['config.yaml', 'metrics.jsonl', 'samples.jsonl', 'evals.jsonl', 'evals-samples.jsonl'],
  ...['checkpoints', 'tensorboard'],
  ...measurementFiles,
]

/**
 * Makes the directory for a new run. Throws ERR_RAPO_CONFIG if it holds a run already, unless that run may be replaced.
 * Removes nothing.
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
  const foreign = mayReplace ? undefined : runFiles.filter(isThere).find(name => !isOwnConfig(dir, name))
  if (foreign) {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `${path.resolve(dir)} holds ${foreign}, which the run would replace: choose another --run.output, or replace it with --overwrite`,
    )
  }
  makeDirectories(dir)
}

/** Whether a file is the config.yaml of a run here that ended before its first step. */
function isOwnConfig(dir: string, name: string): boolean {
  if (name !== 'config.yaml') return false
  try {
    const { run } = readConfigFile(path.join(dir, name)).values as { run?: { output?: unknown } }
    return typeof run?.output === 'string' && path.resolve(run.output) === path.resolve(dir)
  } catch {
    return false
  }
}

/** What lies in the directory and is no run's; at most three names. */
export function describeForeign(dir: string): string | undefined {
  const own = [...runFiles, ...Object.values(locks)]
  const isThere = statOf(dir)?.isDirectory()
  const names = isThere ? readdirSync(dir).filter(name => !own.includes(name)) : []
  if (names.length === 0) return undefined
  const more = names.length > 3 ? ` and ${names.length - 3} more` : ''
  return `${path.resolve(dir)} holds other files, which stay as they are: ${names.slice(0, 3).join(', ')}${more}`
}

/** Removes an earlier run's files, and nothing else that is in the directory. Throws ERR_RAPO_IO. */
export function clearRun(dir: string): void {
  ioGuard(`cannot replace the run in ${dir}`, () => {
    for (const name of runFiles) rmSync(path.join(dir, name), { recursive: true, force: true })
  })
}

/**
 * Takes the directory's lock: only one run trains, and only one evaluation writes, in a directory. The lock of a process that
 * has ended is taken over. If a living process holds the lock, throws ERR_RAPO_CONFIG.
 */
export function lockRun(dir: string, what: keyof typeof locks, times?: LockTimes): Promise<Lock> {
  const file = path.join(dir, locks[what])
  const refuse = (holder: string) => {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `${dir} is in use by ${holder}; if that is no \`rapo ${what}\`, remove ${path.resolve(file)}`,
    )
  }
  return acquireLock(file, refuse, times)
}
