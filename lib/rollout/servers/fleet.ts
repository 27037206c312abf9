/** The servers of a run: which of them hold the weights of now, how busy each is, and why the others are not used. */
import { setTimeout as sleep } from 'node:timers/promises'
import { RapoError, reasonOf } from '../../base/errors.js'
import { NoAnswer, Refused } from './http.js'
import type { InferenceServer, ServerCall } from './server.js'

/** What a server calls its weights; undefined where its release does not tell. */
export type Held = string | undefined

/** A server, and what is known of it. */
export interface Member {
  readonly server: InferenceServer
  /** Requests under way. */
  inFlight: number
  /** Requests may be sent: it was seen to hold the weights of now. */
  isReady: boolean
  /** What it calls the weights that it was given last, and their version. */
  held?: Held
  version?: number
  /** Why it is not ready. */
  fault?: unknown
}

/** Gives servers the weights of now and checks them. One result a server, in their order. */
export type Prepare = (servers: readonly InferenceServer[]) => Promise<PromiseSettledResult<Held>[]>

/** None of the servers holds the weights of now any more. */
export class ServersLost extends RapoError {}

/** Milliseconds between two attempts to reach servers that are gone. */
const POLL = 500

export interface Fleet {
  readonly members: readonly Member[]
  /** The ready member with the fewest requests under way, once it has room; undefined where none is ready. */
  acquire(signal: AbortSignal): Promise<Member | undefined>
  release(member: Member): void
  /** Takes all out of use: the weights of now are others. */
  outdate(): void
  /** Takes it out of use. */
  lose(member: Member, fault: unknown): void
  /**
   * Makes every member ready, with the weights of `version`, that is not. Where none is ready afterwards, and one of them may come
   * back, once more until the time is over. Throws ServersLost, naming each member and its fault.
   */
  ready(prepare: Prepare, version: number, call: ServerCall): Promise<void>
  close(): void
}

/** @param notify told which server is not used, and that servers are waited for */
export function createFleet(
  servers: readonly InferenceServer[],
  maxInFlight: number,
  notify: (text: string) => void,
): Fleet {
  const members = servers.map((server): Member => ({ server, inFlight: 0, isReady: false }))
  /** Told when a place is free, or a member is gone. */
  let waiting: (() => void)[] = []
  const wake = () => {
    const told = waiting
    waiting = []
    for (const tell of told) tell()
  }
  const ready = () => members.filter(({ isReady }) => isReady)
  return {
    members,
    async acquire(signal) {
      for (;;) {
        signal.throwIfAborted()
        const usable = ready()
        if (usable.length === 0) return undefined
        const least = usable.reduce((a, b) => (b.inFlight < a.inFlight ? b : a))
        if (least.inFlight < maxInFlight) {
          least.inFlight++
          return least
        }
        await new Promise<void>(resolve => waiting.push(resolve))
      }
    },
    release(member) {
      member.inFlight--
      wake()
    },
    outdate() {
      for (const member of members) member.isReady = false
    },
    lose(member, fault) {
      member.isReady = false
      member.fault = fault
      wake()
    },
    async ready(prepare, version, { signal, timeoutSeconds }) {
      const end = performance.now() + timeoutSeconds * 1000
      for (let round = 0; ; round++) {
        const tried = members.filter(({ isReady, fault }) => !isReady && (round === 0 || isPassing(fault)))
        const results = await prepare(tried.map(({ server }) => server))
        signal?.throwIfAborted()
        for (const [i, member] of tried.entries()) {
          const result = results[i]!
          if (result.status === 'fulfilled') {
            member.held = result.value
            member.version = version
            member.isReady = true
            delete member.fault
            continue
          }
          const { fault: before } = member
          member.fault = result.reason
          if (before === undefined || reasonOf(before) !== reasonOf(result.reason))
            notify(`a server is not used: ${reasonOf(result.reason)}`)
        }
        if (ready().length > 0) return
        const mayReturn = members.some(({ fault }) => isPassing(fault))
        if (!mayReturn || performance.now() > end) throw lost(members, mayReturn ? timeoutSeconds : undefined)
        if (round === 0) {
          const urls = members.map(({ server }) => server.url).join(', ')
          notify(`waiting up to ${timeoutSeconds} s for ${urls}`)
        }
        await sleep(POLL, undefined, signal ? { signal } : {}).catch(() => signal?.throwIfAborted())
      }
    },
    close() {
      for (const { server } of members) server.close()
      wake()
    },
  }
}

/** Whether the server may recover without anybody's doing more than starting it again. */
export function isPassing(fault: unknown): boolean {
  return (
    fault instanceof NoAnswer || (fault instanceof Refused && (fault.status >= 500 || fault.status === 429))
  )
}

export function lost(members: readonly Member[], seconds?: number): ServersLost {
  const waited = seconds === undefined ? '' : ` after ${seconds} s of waiting`
  const each = members.map(({ server, fault }) => {
    const why = fault === undefined ? 'not ready' : reasonOf(fault)
    return why.startsWith(server.url) ? why : `${server.url}: ${why}`
  })
  return new ServersLost('ERR_RAPO_IO', `no server is left for the rollouts${waited}:\n${each.join('\n')}`)
}
