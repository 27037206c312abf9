/**
 * The processes ("ranks") that train or measure together, and what they tell each other. All ranks run the same program and
 * make the same calls in the same order. A process that runs alone is a world of size 1, which costs and needs nothing.
 */
import { deserialize, serialize } from 'node:v8'
import { type Control, runCall } from '../base/call.js'
import { RapoError, reasonOf } from '../base/errors.js'
import { type EngineAddon, loadEngine } from '../setup/engine-addon.js'
import { type Failure, PeerError } from './peer-error.js'
import { listenAt, type Place, placeFromEnv } from './place.js'

declare const handle: unique symbol
/** What the engine takes for its own exchanges. Opaque. */
export type WorldHandle = { readonly [handle]: true }

/** The ranks as one of them sees them. After an ERR_RAPO_DISTRIBUTED no further call of gather or together is possible. */
export interface World {
  readonly rank: number
  readonly size: number
  /** The same among the ranks on this host. */
  readonly localRank: number
  readonly localSize: number
  /** Attempts of the launcher before this one. */
  readonly restarts: number
  /** Absent in a world of size 1. */
  readonly handle?: WorldHandle
  /**
   * Does the work, and returns every rank's result in the order of the ranks. Where the work fails on any rank the call
   * rejects on all of them, on that rank with the work's own error, on the others with a PeerError that names the rank. They
   * are together again then, and can go on to save. `what` names the exchange in errors, such as "step 4, rollouts".
   */
  gather<T>(what: string, work: () => T | Promise<T>): Promise<T[]>
  /** The same for work whose result is for this rank alone, and may be anything. */
  together<T>(what: string, work: () => T | Promise<T>): Promise<T>
  /** Tells the other ranks why this one ends; their errors say so. */
  report(error: unknown): Promise<void>
  /** Leaves. Ranks that still wait for this one fail. */
  close(): Promise<void>
}

/** The world of a process that runs alone. */
export const alone: World = {
  ...{ rank: 0, size: 1, localRank: 0, localSize: 1, restarts: 0 },
  gather: async (_, work) => [await work()],
  together: async (_, work) => work(),
  report: async () => {},
  close: async () => {},
}

/** The other ranks cannot be reached any more: nothing can be done together. */
export function isApart(error: unknown): boolean {
  return error instanceof RapoError && error.code === 'ERR_RAPO_DISTRIBUTED'
}

/** What an aborted signal gives as its reason, of rapo's or by default. */
function isAbort(error: unknown): boolean {
  return error instanceof RapoError
    ? error.code === 'ERR_RAPO_ABORTED'
    : (error as Error)?.name === 'AbortError'
}

type Message<T> = { readonly value: T } | { readonly failure: Failure }

/** How the ranks meet. */
export interface WorldOptions {
  /** Where the model is: "cpu" (Gloo) or "cuda:1" (NCCL for tensors). */
  readonly device: string
  /** The longest wait for another rank. */
  readonly timeoutSeconds: number
  /** Aborting ends the wait for the other ranks' start. */
  readonly signal?: AbortSignal | undefined
  /** Default: what the launcher said. */
  readonly place?: Place | undefined
}

// What bindings/world.h exports.
interface WorldAddon extends EngineAddon {
  readonly worldSupported: boolean
  readonly Control: new () => Control
  openWorld(place: object, control: Control): Promise<WorldHandle>
  worldGather(world: WorldHandle, what: string, bytes: Uint8Array): Promise<Uint8Array[]>
  worldReport(world: WorldHandle, message: string): Promise<void>
  worldClose(world: WorldHandle): Promise<void>
  openStore(): { readonly port: number; readonly handle: unknown }
}

/** Of this process: a later world must not find the keys of an earlier one in the store. */
let opened = 0

/**
 * Waits until all processes that the launcher started have come. Without a launcher the world has one rank. Throws
 * ERR_RAPO_CONFIG where the launcher's variables do not fit together, ERR_RAPO_DISTRIBUTED that names the ranks that
 * did not come, ERR_RAPO_UNSUPPORTED where libtorch has no c10d.
 */
export async function openWorld(options: WorldOptions): Promise<World> {
  const { place = placeFromEnv(), device, timeoutSeconds, signal } = options
  if (!place) return alone
  const addon = loadEngine() as WorldAddon
  const { rank, size, localRank, localSize, restarts, host, port } = place
  const native = {
    ...{ rank, size, host, port, device },
    hasStore: place.isStoreOurs && rank === 0,
    prefix: `rapo/${place.attempt}/${opened++}`,
    timeoutMs: Math.round(timeoutSeconds * 1000),
    ...(await listenAt(place)),
  }
  const world = await runCall(new addon.Control(), { signal }, control => addon.openWorld(native, control))

  async function attempt<T>(work: () => T | Promise<T>): Promise<{ own: Message<T>; error?: unknown }> {
    try {
      return { own: { value: await work() } }
    } catch (error) {
      // Nothing is left to tell, and nobody to tell it.
      if (isApart(error)) throw error
      const isKnown = error instanceof RapoError
      const code = isKnown ? error.code : 'ERR_RAPO_INTERNAL'
      const failure = { code, message: reasonOf(error), isAbort: isAbort(error) }
      return { own: { failure }, error }
    }
  }
  function agree<T>(all: readonly Message<T>[], own: Message<unknown>, error: unknown): T[] {
    const failed = all.flatMap((message, r) =>
      'failure' in message ? [{ rank: r, ...message.failure }] : [],
    )
    if ('failure' in own) {
      // What all ranks find wrong is told once, by the first of them.
      const same = failed.find(({ message }) => message === own.failure.message)!
      throw same.rank < rank && !same.isAbort ? new PeerError(same.rank, same) : error
    }
    // That one of them was stopped says less than that another one failed.
    const first = failed.find(failure => !failure.isAbort) ?? failed[0]
    if (first) throw new PeerError(first.rank, first)
    return all.map(message => (message as { value: T }).value)
  }
  async function gather<T>(what: string, work: () => T | Promise<T>): Promise<T[]> {
    const { own, error } = await attempt(work)
    const all = await addon.worldGather(world, what, serialize(own))
    const messages = all.map((bytes): Message<T> => deserialize(bytes))
    return agree(messages, own, error)
  }
  return {
    ...{ rank, size, localRank, localSize, restarts, handle: world },
    gather,
    async together<T>(what: string, work: () => T | Promise<T>) {
      const kept: T[] = []
      await gather(what, async () => {
        kept.push(await work())
      })
      return kept[0]!
    },
    report: error => addon.worldReport(world, reasonOf(error)),
    close: () => addon.worldClose(world),
  }
}

/** A store in which the ranks that this process starts can meet, for as long as this process lives. Returns its port. */
export function openStore(): number {
  const store = (loadEngine() as WorldAddon).openStore()
  stores.push(store)
  return store.port
}

const stores: unknown[] = []
