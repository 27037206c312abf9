/**
 * The policy's weights by broadcasts: this process is rank 0 of a group whose other ranks are the servers' workers. Their HTTP
 * answers and the group's own thread are waited for together. What fails first ends the others, and the group with them.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { RapoError, reasonOf } from '../../base/errors.js'
import { anySignal } from '../../base/wait.js'
import type { BroadcastGroup, Policy, TensorInfo } from '../../model/policy.js'
import { NoAnswer, Refused } from './http.js'
import type { InferenceServer, Receiver, ServerCall } from './server.js'
import type { Update, UpdateCall, WeightSync } from './sync.js'

export interface BroadcastOptions {
  readonly backend: 'nccl' | 'gloo'
  /** See GroupOptions. */
  readonly library?: string | undefined
}

/** A server of a group, and its ranks. */
interface Member {
  readonly server: InferenceServer
  readonly receiver: Receiver
  readonly first: number
  readonly last: number
}

interface Group {
  readonly name: string
  readonly members: readonly Member[]
  readonly broadcast: BroadcastGroup
  /** What the servers were told last that their weights are called. */
  weights?: string
}

/** What broke an update off, and the server whose fault it was; undefined for the group's own. */
class BrokenOff extends Error {
  constructor(
    readonly server: InferenceServer | undefined,
    readonly what: string,
    readonly fault: unknown,
  ) {
    super(reasonOf(fault))
  }
}

/** Milliseconds in which a server can say why, after the group has failed. */
const AFTERWORD = 2000

/** Seconds for answers that need no work. */
const QUICK = 30

/** @param policy must be able to broadcast: Policy.openGroup */
export function broadcastWeights(
  policy: Pick<Policy, 'info' | 'tensors' | 'openGroup'>,
  { backend, library }: BroadcastOptions,
): WeightSync {
  const { tensors = [] } = policy
  let group: Group | undefined
  /** Leaves the group; returns it. */
  const abandon = (): Group | undefined => {
    const left = group
    group = undefined
    left?.broadcast.close()
    return left
  }
  /** Leaves a group that is whole, and tells its servers. One that is gone need not hear of it. */
  const leave = async (call: ServerCall) => {
    const { name, members = [] } = abandon() ?? {}
    const quick = { ...call, timeoutSeconds: Math.min(QUICK, call.timeoutSeconds) }
    await Promise.allSettled(members.map(({ receiver }) => receiver.leave(name!, quick)))
  }

  async function open(servers: readonly InferenceServer[], call: ServerCall): Promise<Group> {
    let size = 1
    const counts = await together(servers, 'asking for the number of its workers', call, (server, signal) =>
      receiverOf(server).workers({ ...call, signal }),
    )
    const members = servers.map((server, i): Member => {
      const count = counts[i]!
      if (!(Number.isSafeInteger(count) && count >= 1)) {
        const fault = new RapoError(
          'ERR_RAPO_IO',
          `${server.url} tells ${count} as the number of its workers`,
        )
        throw new BrokenOff(server, 'asking for the number of its workers', fault)
      }
      size += count
      return { server, receiver: receiverOf(server), first: size - count, last: size - 1 }
    })
    const name = `rapo-${randomUUID().slice(0, 8)}`
    const { usesStore, address } = members[0]!.receiver
    const broadcast = await policy.openGroup!({
      ...{ backend, library, timeoutSeconds: call.timeoutSeconds },
      ...(usesStore && { name, address: address() }),
    })
    group = { name, members, broadcast }
    const { id, port } = broadcast
    const memberOf = new Map(members.map(member => [member.server, member]))
    await together(
      servers,
      `joining the group ${name}`,
      call,
      (server, signal) => {
        const { receiver, first } = memberOf.get(server)!
        const { packedBytes } = receiver
        const place = { name, rankOffset: first, worldSize: size, id, port, backend, packedBytes }
        return receiver.join(place, { ...call, signal })
      },
      signal => broadcast.join(size, { ...call, signal }),
    )
    return group
  }

  /** The group of these servers: that of the last update, if all of them are still in it. */
  async function groupOf(servers: readonly InferenceServer[], call: ServerCall): Promise<Group> {
    const known = group
    if (known?.weights !== undefined && isOf(known, servers)) {
      const quick = { ...call, timeoutSeconds: Math.min(QUICK, call.timeoutSeconds) }
      const names = await Promise.allSettled(servers.map(server => server.weightsName(quick)))
      // One that was started again has other weights.
      if (names.every(name => name.status === 'fulfilled' && name.value === known.weights)) return known
    }
    await leave(call)
    return open(servers, call)
  }

  async function update(
    servers: readonly InferenceServer[],
    { name }: Update,
    { isInFlight, ...call }: UpdateCall,
  ): Promise<void> {
    const used = await groupOf(servers, call)
    const all = <T>(
      what: string,
      each: (receiver: Receiver, timed: ServerCall) => Promise<T>,
      own?: (signal: AbortSignal) => Promise<void>,
    ) => together(servers, what, call, (server, signal) => each(receiverOf(server), { ...call, signal }), own)
    delete used.weights
    await all('beginning the update', (receiver, timed) => receiver.begin({ ...timed, isInFlight }))
    const { packedBytes, requestBytes } = used.members[0]!.receiver
    const { dtype } = policy.info
    const parts = partsOf(tensors, dtype === 'float32' ? 4 : 2, requestBytes)
    for (const { first, count } of parts) {
      const part = tensors.slice(first, first + count)
      const announced = {
        ...{
          group: used.name,
          names: part.map(tensor => tensor.name),
          shapes: part.map(({ shape }) => shape),
        },
        ...{ dtype, ...(first + count === tensors.length && { weights: name }) },
      }
      await all(
        `receiving ${announced.names[0]} to ${announced.names.at(-1)}`,
        (receiver, timed) => receiver.receive(announced, timed),
        signal => used.broadcast.broadcast({ first, count, packedBytes }, { ...call, signal }),
      )
    }
    await all('finishing the update', (receiver, timed) => receiver.finish(name, { ...timed, isInFlight }))
    used.weights = name
  }

  return {
    isNamed: false,
    async give(servers, next, call) {
      if (servers.length === 0) return []
      try {
        await update(servers, next, call)
        return servers.map(() => ({ status: 'fulfilled', value: undefined }))
      } catch (error) {
        const ranks = ranksOf(abandon())
        if (!(error instanceof BrokenOff)) throw error
        return servers.map(server => ({ status: 'rejected', reason: faultOf(server, error, next, ranks) }))
      }
    },
    async keepOnly() {},
    close: () => leave({ timeoutSeconds: QUICK }),
  }
}

function receiverOf({ url, receiver }: InferenceServer): Receiver {
  if (receiver) return receiver
  throw new RapoError('ERR_RAPO_INTERNAL', `${url} was not connected to receive broadcasts`)
}

const isOf = ({ members }: Group, servers: readonly InferenceServer[]) =>
  members.length === servers.length && members.every(({ server }, i) => server === servers[i])

/** Who is rank 0, and which ranks the servers are, for messages. */
function ranksOf(group: Group | undefined): string {
  const each = (group?.members ?? []).map(
    ({ server, first, last }) =>
      `${server.url} ${first === last ? `(rank ${first})` : `(ranks ${first} to ${last})`}`,
  )
  return ['this process (rank 0)', ...each].join(', ')
}

/** Why a server did not get the weights. Whoever is not to blame may be tried again. */
function faultOf(server: InferenceServer, broken: BrokenOff, { name }: Update, ranks: string): unknown {
  const { fault, what } = broken
  if (broken.server === undefined) {
    return new NoAnswer(
      `${server.url}: the update to ${name} failed between ${ranks}, while ${what}: ${reasonOf(fault)}`,
    )
  }
  if (broken.server !== server) {
    return new NoAnswer(
      `${server.url}: the update to ${name} was broken off, since another server of the group failed while ${what}: ${reasonOf(fault)}`,
    )
  }
  const why = `${reasonOf(fault)} (while ${what}, for the update to ${name}; ${ranks})`
  // Not asked again and again, whatever the status.
  if (fault instanceof Refused) return new RapoError('ERR_RAPO_IO', why)
  return fault instanceof NoAnswer ? new NoAnswer(why, fault.isTimeout) : fault
}

/** Tensors whose bytes together stay within `most`, unless one alone has more. */
function partsOf(tensors: readonly TensorInfo[], width: number, most: number) {
  const parts: { first: number; count: number }[] = []
  let bytes = Infinity
  for (const [i, { shape }] of tensors.entries()) {
    const own = shape.reduce((product, size) => product * size, width)
    if (bytes + own > most || parts.length === 0) {
      parts.push({ first: i, count: 0 })
      bytes = 0
    }
    parts.at(-1)!.count++
    bytes += own
  }
  return parts
}

/**
 * Runs `each` for all servers, and `own` beside them. The first that fails aborts the others; throws BrokenOff when all have ended,
 * or the reason of the signal.
 */
async function together<T>(
  servers: readonly InferenceServer[],
  what: string,
  { signal }: ServerCall,
  each: (server: InferenceServer, signal: AbortSignal) => Promise<T>,
  own?: (signal: AbortSignal) => Promise<void>,
): Promise<T[]> {
  const ending = new AbortController()
  const all = anySignal(ending.signal, signal)
  let broken: BrokenOff | undefined
  const fail = (server: InferenceServer | undefined, fault: unknown) => {
    broken ??= new BrokenOff(server, what, fault)
    ending.abort(broken)
  }
  const asked = servers.map(async server => {
    try {
      return await each(server, all)
    } catch (fault) {
      fail(server, fault)
      throw fault
    }
  })
  const sending = (async () => {
    try {
      await own?.(all)
    } catch (fault) {
      // The servers know more: a failed one has broken the group, and says why.
      await sleep(AFTERWORD, undefined, { signal: all }).catch(() => {})
      fail(undefined, fault)
    }
  })()
  const answers = await Promise.allSettled(asked)
  await sending
  signal?.throwIfAborted()
  if (broken) throw broken
  return answers.map(answer => (answer as PromiseFulfilledResult<T>).value)
}
