/** How a run or a measurement becomes a rank of the world that a launcher started, and leaves it. */
import { readFileSync } from 'node:fs'
import { availableParallelism, hostname } from 'node:os'
import { RapoError } from '../base/errors.js'
import type { Config } from '../config/config.js'
import type { Device } from '../model/policy.js'
import { PeerError } from './peer-error.js'
import { placeFromEnv } from './place.js'
import { openWorld, type World } from './world.js'

export interface Joined {
  readonly world: World
  /** Each rank of a host has a GPU of its own, unless one is named. */
  readonly device: Device
  /** As run.threads: ranks of one host share its processors. */
  readonly threads: number
}

/** Throws as openWorld. */
export async function joinWorld(config: Config, signal: AbortSignal | undefined): Promise<Joined> {
  const place = placeFromEnv()
  const named = config.model.device as Device
  const device = named === 'cuda' && place ? (`cuda:${place.localRank}` as const) : named
  const { timeoutSeconds } = config.distributed
  const world = await openWorld({ device, timeoutSeconds, signal, place })
  const all = await world.gather('processors', () => `${hostname()} ${allowedProcessors()}`)
  const isGiven = config.run.threads > 0 || world.size === 1
  const threads = isGiven ? config.run.threads : shareThreads(all, world.rank, availableParallelism())
  return { world, device, threads }
}

/** Those on which the launcher lets this process run: mpirun and srun may give each rank processors of its own. */
function allowedProcessors(): string {
  try {
    return /^Cpus_allowed_list:\s*(\S+)/m.exec(readFileSync('/proc/self/status', 'latin1'))?.[1] ?? ''
  } catch {
    return '' // no Linux
  }
}

/**
 * How many threads a rank takes of its `count` processors.
 *
 * @param all each rank's processors; ranks with the same ones share them
 */
export function shareThreads(all: readonly string[], rank: number, count: number): number {
  return Math.max(1, Math.floor(count / all.filter(other => other === all[rank]).length))
}

/** Tells the other ranks of the error that ended this one, unless they told it. */
export async function leaveWorld(world: World, error?: unknown): Promise<void> {
  if (error !== undefined && !(error instanceof PeerError)) await world.report(error)
  await world.close()
}

/** The weights of several processes would have to reach the servers once, and each process to sample its part there. */
export function checkAlone({ rollouts: { engine } }: Config, { size }: World): void {
  if (engine === 'local' || size === 1) return
  throw new RapoError(
    'ERR_RAPO_CONFIG',
    `rollouts.engine is ${engine}; it must be local where there are ${size} processes`,
  )
}
