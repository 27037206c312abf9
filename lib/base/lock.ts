/**
 * The one lock of the project: a file that one holder at a time has, among threads, processes, containers and hosts that
 * share a file system. Process numbers alone cannot decide (in a container every run is process 1), nor can clocks, which
 * differ between hosts. A holder renews the file's time; it is gone where its process is seen to have ended, or where the
 * file did not change for STALE_MS by the watcher's own clock.
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
  /** Aborted once somebody else is found to have the lock; its reason is a RapoError that says so. */
  readonly lost: AbortSignal
  /** Throws that reason where the lock is not held any more. To be called before anything is written that it guards. */
  check(): void
  /** Removes the file, unless it is somebody else's by now. Idempotent. */
  release(): Promise<void>
}

/** Milliseconds; for tests. */
export interface LockTimes {
  /** Between renewals. Default 2 s. */
  readonly beat?: number
  /** Without a renewal for so long, a holder whose process cannot be seen is gone. Default 20 s. */
  readonly stale?: number
}

const BEAT_MS = 2_000
const STALE_MS = 20_000
const POLL_MS = 100

/** What a lock file holds, as JSON. Older versions of rapo wrote the process number alone. */
interface Holder {
  readonly pid?: number
  readonly host?: string
  /** The running kernel, the namespace that pid is counted in, and the process's start: absent where they cannot be read. */
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

/** Of the locks that this thread has: what removes their files. */
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
  // A later chdir must not move it.
  const place = path.resolve(file)
  const token = randomUUID()
  const content = JSON.stringify({ ...self(), token } satisfies Holder)
  await take(place, content, onHeld, stale)
  try {
    // A file system that cannot do this would make a living holder look dead.
    utimesSync(place, new Date(), new Date())
  } catch (error) {
    rmSync(place, { force: true })
    throw asIoError(`cannot renew ${place}`, error)
  }
  return hold(place, content, token, beat)
}

/** Runs body under the lock; the signal is that of Lock.lost. */
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

/** The file is renewed by a thread of its own: however long this one is busy, it is alive. */
const heartbeat = `
  const { parentPort, workerData: { place, content, beat } } = require('node:worker_threads')
  const { readFileSync, utimesSync } = require('node:fs')
  const timer = setInterval(() => {
    try {
      if (readFileSync(place, 'utf8') === content) return utimesSync(place, new Date(), new Date())
    } catch (error) {
      // Any other fault may pass.
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
    // None of the embedder's loaders.
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

/** Makes the file with this content, in the place of one whose holder is gone. */
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

/** changed: it is not the same holder's any more. */
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
    // While this process was suspended, the holder may have been, too.
    unchanged += Math.min(performance.now() - seen, 2 * POLL_MS)
    seen = performance.now()
  }
  return 'gone'
}

/**
 * Puts a lock of this content where the gone holder's is. Under a lock of its own, named after the old content: who has
 * that is the only one that may replace it, so that no two processes take over, and nobody a lock that is new.
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

/** False where there is such a file. */
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

/** Undefined where there is no such file. It is opened, not asked for its time alone: NFS caches that for a minute. */
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

/** Of a file that is cut or damaged nothing is known. */
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

/** Whether its process number is counted as ours is. */
function isNear({ host, boot, pids }: Holder): boolean {
  const own = self()
  return own.boot === undefined
    ? boot === undefined && host === own.host
    : boot === own.boot && pids === own.pids
}

/** Whether the holder's process is there; undefined where only renewals can say. */
function isAlive(holder: Holder): boolean | undefined {
  const own = self()
  const { pid, host, start } = holder
  if (pid === undefined) return undefined
  // Of an older version, which renews nothing.
  if (host === undefined) return pid !== own.pid && exists(pid)
  // Of this process: another thread, or one that was terminated.
  if (!isNear(holder) || (pid === own.pid && start === own.start)) return undefined
  // Where starts cannot be read, the other host may have the same name.
  if (start === undefined) return exists(pid) || undefined
  if (!exists(pid)) return false
  const found = startOf(pid)
  return found === undefined ? undefined : found === start
}

/** Also where it is another user's. */
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

/** Who this process is, so that another one with its number is told apart (proc(5)). */
function self(): Holder {
  if (known) return known
  known = { pid: process.pid, host: hostname() }
  try {
    const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
    const pids = readlinkSync('/proc/self/ns/pid')
    const start = startOf(process.pid)
    // Where /proc is another namespace's, its numbers are others'.
    const isOurs = Number.parseInt(readFileSync('/proc/self/stat', 'utf8'), 10) === process.pid
    if (isOurs && start !== undefined) known = { ...known, boot, pids, start }
  } catch {} // no such files here
  return known
}

/** When a process started, in ticks since the machine did; a dead one that nobody has waited for has the start "dead". */
function startOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The name in brackets may hold anything.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    return /[ZX]/.test(fields[0]!) ? 'dead' : fields[19]
  } catch {
    return undefined
  }
}
