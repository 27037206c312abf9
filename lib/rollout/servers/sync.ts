/** How the weights of a version reach servers: what the ways of rollouts.sync have in common. */
import type { InferenceServer, ServerCall } from './server.js'

/** An update of weights. */
export interface Update {
  readonly version: number
  /** What the servers are told that the weights are called. */
  readonly name: string
}

/** How long an update may take, and whether requests under way are frozen instead of finished before. */
export interface UpdateCall extends ServerCall {
  readonly isInFlight: boolean
}

export interface WeightSync {
  /** Requests name the weights that are to sample them; servers keep several. */
  readonly isNamed: boolean
  /**
   * Gives the policy's weights of now to the servers. One result a server, in their order: why it did not get them. Rejects for
   * what is no server's fault, such as a full disk.
   */
  give(
    servers: readonly InferenceServer[],
    update: Update,
    call: UpdateCall,
  ): Promise<PromiseSettledResult<void>[]>
  /** Removes all versions but this one and those that requests under way use. */
  keepOnly(version: number, inUse: ReadonlySet<number>, call: ServerCall): Promise<void>
  /** Removes them all. */
  close(): Promise<void>
}

/** What a server is told that the weights of a version are called. */
export const weightsName = (run: string, version: number) => `${run}-v${version}`

/** The version in such a name of any run; undefined in another name. */
export function versionIn(name: string): number | undefined {
  const [, version] = /-v(\d+)$/.exec(name) ?? []
  return version === undefined ? undefined : Number(version)
}
