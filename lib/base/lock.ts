/**
 * The one lock of the project: a file that one holder at a time has, among threads, processes, containers and hosts that share
 * a file system. Process numbers alone cannot decide who lives, since in a container every run is process 1. Clocks cannot
 * either, since they differ between hosts. A holder therefore renews the file's time. A holder is gone if its process is known
 * to have ended, or if the file did not change for STALE_MS on the clock of the process that waits.
 */
import { createHash, randomUUID } from 'node:crypto'
import {
  closeSync,
  fstatSync,
  openSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { hostname } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { RapoError } from './errors.js'
import { asIoError } from './files.js'

export interface Lock {
  /** Aborted when another holder is found to have the lock. The reason is a RapoError that says so. */
  readonly lost: AbortSignal
  /** Throws that reason if the lock is not held any more. Call it before writing anything that the lock guards. */
  check(): void
  /** Removes the file, unless another holder has taken it over. Further calls do nothing. */
  release(): Promise<void>
}

/** What a process has that leaves all writing to another one. */
export const noLock: Lock = { lost: new AbortController().signal, check() {}, release: async () => {} }

/** Times in milliseconds; only tests change them. */
export interface LockTimes {
  /** Between renewals. Default 2 s. */
  readonly beat?: number
  /** A holder whose process cannot be seen is gone after so long without a renewal. Default 20 s. */
  readonly stale?: number
}

const BEAT_MS = 2_000
const STALE_MS = 20_000
const POLL_MS = 100

/** The content of a lock file, as JSON. Older versions of rapo wrote only the process number. */
interface Holder {
  readonly pid?: number
  readonly host?: string
  /** The running kernel, the namespace of pid and the process's start. Each is absent if it cannot be read. */
  readonly boot?: string
  readonly pids?: string
  readonly start?: string
  readonly token?: string
}

interface LockFile {
  readonly content: string
  /** Changes with every renewal. */
  readonly version: string
}

/** The locks that this thread has, by token: functions that remove their files. */
const held = new Map<string, () => void>()

function removeAll(): void {
  for (const remove of held.values()) remove()
}

/**
 * Takes the lock. While a living holder has it, `onHeld` is called once with a description such as "process 12": what it
 * throws ends the attempt; where it returns, the holder is waited for. Throws ERR_RAPO_IO.
 */
export async function acquireLock(
  file: string,
  onHeld: (holder: string) => void,
  { beat = BEAT_MS, stale = STALE_MS }: LockTimes = {},
): Promise<Lock> {
  // Absolute, so that a later chdir does not change the place.
  const place = path.resolve(file)
  const token = randomUUID()
  const content = JSON.stringify({ ...self(), token } satisfies Holder)
  await take(place, content, onHeld, stale)
  try {
    // On a file system that cannot set times, a living holder would look dead.
    utimesSync(place, new Date(), new Date())
  } catch (error) {
    rmSync(place, { force: true })
    throw asIoError(`cannot renew ${place}`, error)
  }
  return hold(place, content, token, beat)
}

/** Runs body under the lock. The signal is Lock.lost. */
export async function withLock<T>(
  file: string,
  onHeld: (holder: string) => void,
  body: (lost: AbortSignal) => Promise<T>,
): Promise<T> {
  const lock = await acquireLock(file, onHeld)
  try {
    return await body(lock.lost)
  } finally {
    await lock.release()
  }
}

/** A separate thread renews the file, so that a busy holder is not taken for a dead one. */
const heartbeat = `
  const { parentPort, workerData: { place, content, beat } } = require('node:worker_threads')
  const { readFileSync, utimesSync } = require('node:fs')
  const timer = setInterval(() => {
    try {
      if (readFileSync(place, 'utf8') === content) return utimesSync(place, new Date(), new Date())
    } catch (error) {
      // Any other fault may be temporary.
      if (error.code !== 'ENOENT') return
    }
    clearInterval(timer)
    parentPort.postMessage('lost')
  }, beat)`

function hold(place: string, content: string, token: string, beat: number): Lock {
  const lost = new AbortController()
  let isReleased = false
  const remove = () => {
    if (read(place)?.content === content) rmSync(place, { force: true })
  }
  if (held.size === 0) process.on('exit', removeAll)
  held.set(token, remove)
  const lose = (cause?: Error) => {
    if (isReleased || lost.signal.aborted) return
    let now: LockFile | undefined
    try {
      now = read(place)
    } catch {} // said below all the same
    const who = now ? `${describe(parse(now.content))} has taken it over` : 'somebody has removed it'
    lost.abort(
      new RapoError(
        'ERR_RAPO_ABORTED',
        `the lock ${place} is lost: ${who}, perhaps because this process was suspended, or cut off from the file system, for long; nothing more is written there`,
        { cause },
      ),
    )
  }
  const worker = new Worker(heartbeat, {
    eval: true,
    workerData: { place, content, beat },
    // Without the loaders of the embedding program.
    execArgv: [],
    env: {},
  })
  worker.on('message', () => lose())
  worker.on('error', lose)
  worker.unref()
  return {
    lost: lost.signal,
    check() {
      if (read(place)?.content !== content) lose()
      lost.signal.throwIfAborted()
    },
    async release() {
      if (isReleased) return
      isReleased = true
      held.delete(token)
      if (held.size === 0) process.off('exit', removeAll)
      try {
        remove()
      } finally {
        await worker.terminate()
      }
    },
  }
}

/** Creates the file with this content, or replaces the file of a holder that is gone. */
async function take(
  place: string,
  content: string,
  onHeld: (holder: string) => void,
  stale: number,
): Promise<void> {
  for (let isTold = false; !create(place, content); ) {
    const found = read(place)
    if (!found) continue
    const state = await stateOf(place, found, stale)
    if (state === 'gone') {
      if (await replace(place, found, content, stale)) return
    } else if (state === 'held') {
      if (!isTold) onHeld(describe(parse(found.content)))
      isTold = true
      await sleep(POLL_MS)
    }
  }
}

/** changed: another holder has the file now. */
async function stateOf(place: string, found: LockFile, stale: number): Promise<'held' | 'gone' | 'changed'> {
  const holder = parse(found.content)
  if (holder.token !== undefined && held.has(holder.token)) return 'held'
  const isThere = isAlive(holder)
  if (isThere !== undefined) return isThere ? 'held' : 'gone'
  let unchanged = 0
  let seen = performance.now()
  while (unchanged < stale) {
    await sleep(Math.min(POLL_MS, stale))
    const now = read(place)
    if (now?.content !== found.content) return 'changed'
    if (now.version !== found.version) return 'held'
    // If this process was suspended, the holder may have been suspended too, so that long pauses do not count.
    unchanged += Math.min(performance.now() - seen, 2 * POLL_MS)
    seen = performance.now()
  }
  return 'gone'
}

/**
 * Replaces the lock file of a holder that is gone. A second lock, named after the old content, guards the replacement: only its
 * holder may replace the file. So two processes cannot both take over, and nobody replaces a new lock.
 */
async function replace(place: string, found: LockFile, content: string, stale: number): Promise<boolean> {
  const name = createHash('sha256').update(found.content).digest('hex').slice(0, 8)
  const guard = `${place}.${name}`
  await take(guard, content, () => {}, stale)
  const temporary = `${guard}.new`
  try {
    const now = read(place)
    if (now?.content !== found.content || now.version !== found.version) return false
    writeFileSync(temporary, content)
    renameSync(temporary, place)
    return true
  } catch (error) {
    rmSync(temporary, { force: true })
    throw asIoError(`cannot take over ${place}`, error)
  } finally {
    rmSync(guard, { force: true })
  }
}

/** False if the file exists already. */
function create(place: string, content: string): boolean {
  let isMade = false
  try {
    const descriptor = openSync(place, 'wx')
    isMade = true
    try {
      writeFileSync(descriptor, content)
    } finally {
      closeSync(descriptor)
    }
    return true
  } catch (error) {
    if (isMade) rmSync(place, { force: true })
    else if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false
    throw asIoError(`cannot write ${place}`, error)
  }
}

/**
 * Undefined if the file does not exist. The file is opened, since NFS caches the times of a file that is not opened for a
 * minute.
 */
function read(place: string): LockFile | undefined {
  try {
    const descriptor = openSync(place, 'r')
    try {
      const { ino, mtimeNs } = fstatSync(descriptor, { bigint: true })
      return { content: readFileSync(descriptor, 'utf8'), version: `${ino} ${mtimeNs}` }
    } finally {
      closeSync(descriptor)
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw asIoError(`cannot read ${place}`, error)
  }
}

/** A file that is cut off or damaged says nothing about its holder. */
function parse(content: string): Holder {
  try {
    const value: unknown = JSON.parse(content)
    if (typeof value === 'number') return { pid: value }
    return typeof value === 'object' && value !== null ? value : {}
  } catch {
    return {}
  }
}

function describe(holder: Holder): string {
  if (holder.pid === undefined) return 'another process'
  return `process ${holder.pid}${holder.host === undefined || isNear(holder) ? '' : ` on ${holder.host}`}`
}

/** Whether the holder's process number belongs to the same machine and namespace as this process's. */
function isNear({ host, boot, pids }: Holder): boolean {
  const own = self()
  return own.boot === undefined
    ? boot === undefined && host === own.host
    : boot === own.boot && pids === own.pids
}

/** Whether the holder's process exists; undefined if only renewals can tell. */
function isAlive(holder: Holder): boolean | undefined {
  const own = self()
  const { pid, host, start } = holder
  if (pid === undefined) return undefined
  // A lock of an older version, which renews nothing.
  if (host === undefined) return pid !== own.pid && exists(pid)
  // This process's number: the holder is another thread, or one that was terminated.
  if (!isNear(holder) || (pid === own.pid && start === own.start)) return undefined
  // Where starts cannot be read, the other host may have the same name.
  if (start === undefined) return exists(pid) || undefined
  if (!exists(pid)) return false
  const found = startOf(pid)
  return found === undefined ? undefined : found === start
}

/** Whether a process exists, also if it belongs to another user. */
function exists(pid: number): boolean {
  if (!(pid > 0)) return false
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH'
  }
}

let known: Holder | undefined

/** The identity of this process, which distinguishes it from another process with the same number (proc(5)). */
function self(): Holder {
  if (known) return known
  known = { pid: process.pid, host: hostname() }
  try {
    const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
    const pids = readlinkSync('/proc/self/ns/pid')
    const start = startOf(process.pid)
    // /proc may belong to another namespace and then has other numbers.
    const isOurs = Number.parseInt(readFileSync('/proc/self/stat', 'utf8'), 10) === process.pid
    if (isOurs && start !== undefined) known = { ...known, boot, pids, start }
  } catch {} // no such files here
  return known
}

/**
 * The start of a process in ticks since the machine started; "dead" for a process that has ended and that nobody has waited
 * for.
 */
function startOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The name in brackets may contain spaces and brackets.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    return /[ZX]/.test(fields[0]!) ? 'dead' : fields[19]
  } catch {
    return undefined
  }
}
