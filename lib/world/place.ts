/** Where this process stands among those that a launcher started together: torchrun, srun or mpirun. */
import { createSocket } from 'node:dgram'
import { lookup } from 'node:dns/promises'
import { networkInterfaces } from 'node:os'
import { RapoError } from '../base/errors.js'

/** The place of a process in its run. */
export interface Place {
  /** From 0; `size` processes in all. */
  readonly rank: number
  readonly size: number
  /** The same among the processes on this host. */
  readonly localRank: number
  readonly localSize: number
  /** The address at which the processes meet. */
  readonly host: string
  readonly port: number
  /** Rank 0 must serve the store that they meet in, since the launcher does not. */
  readonly isStoreOurs: boolean
  /** Another one for each attempt of a launcher that starts the processes again. */
  readonly attempt: string
  /** Attempts before this one. */
  readonly restarts: number
}

type Env = Readonly<Record<string, string | undefined>>

/** The variables of the launchers, the surest sign first. srun alone sets SLURM_STEP_NUM_TASKS: a batch script has no step. */
const launchers = [
  { name: 'torchrun', rank: 'RANK', size: 'WORLD_SIZE', localRank: 'LOCAL_RANK' },
  { name: 'srun', rank: 'SLURM_PROCID', size: 'SLURM_STEP_NUM_TASKS', localRank: 'SLURM_LOCALID' },
  {
    name: 'mpirun',
    rank: 'OMPI_COMM_WORLD_RANK',
    size: 'OMPI_COMM_WORLD_SIZE',
    localRank: 'OMPI_COMM_WORLD_LOCAL_RANK',
  },
] as const

/**
 * The place that a launcher gave this process; undefined where there is none, or this process is the only one. Throws
 * ERR_RAPO_CONFIG where the variables do not fit together.
 */
export function placeFromEnv(env: Env = process.env): Place | undefined {
  const launcher = launchers.find(({ rank, size }) => env[rank] && env[size])
  if (!launcher) return undefined
  const size = count(env, launcher.size, 1)
  if (size === 1) return undefined
  const rank = count(env, launcher.rank)
  if (rank >= size) throw fault(launcher.rank, env[launcher.rank], `a number < ${launcher.size}, ${size}`)
  for (const name of ['MASTER_ADDR', 'MASTER_PORT']) {
    if (env[name]) continue
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `${launcher.name} started ${size} processes, but the environment variable ${name} is not set: MASTER_ADDR and MASTER_PORT must name the host of rank 0 and a free port there (docs/scale.md)`,
    )
  }
  const port = count(env, 'MASTER_PORT', 1)
  if (port > 65_535) throw fault('MASTER_PORT', env.MASTER_PORT, 'a port, at most 65535')
  const { restarts, id } = attemptOf(env)
  return {
    rank,
    size,
    localRank: env[launcher.localRank] ? count(env, launcher.localRank) : 0,
    localSize: localSizeOf(env, size),
    host: env.MASTER_ADDR!,
    port,
    isStoreOurs: env.TORCHELASTIC_USE_AGENT_STORE !== 'True',
    attempt: `${id}/${restarts}`,
    restarts,
  }
}

function attemptOf(env: Env) {
  const restart = env.TORCHELASTIC_RESTART_COUNT ? 'TORCHELASTIC_RESTART_COUNT' : 'SLURM_RESTART_COUNT'
  const slurm = env.SLURM_JOB_ID && `${env.SLURM_JOB_ID}.${env.SLURM_STEP_ID ?? ''}`
  return { restarts: env[restart] ? count(env, restart) : 0, id: env.TORCHELASTIC_RUN_ID || slurm || 'run' }
}

/** Processes on this host; 1 where nothing says how many. */
function localSizeOf(env: Env, size: number): number {
  if (env.LOCAL_WORLD_SIZE) return count(env, 'LOCAL_WORLD_SIZE', 1)
  if (env.OMPI_COMM_WORLD_LOCAL_SIZE) return count(env, 'OMPI_COMM_WORLD_LOCAL_SIZE', 1)
  if (env.SLURM_STEP_NUM_NODES === '1') return size
  // Such as 4(x2),3: four on each of the first two nodes, three on the next.
  const perNode = (env.SLURM_STEP_TASKS_PER_NODE ?? '').split(',').flatMap(part => {
    const [, tasks, times = '1'] = /^(\d+)(?:\(x(\d+)\))?$/.exec(part) ?? []
    return tasks ? Array.from({ length: Number(times) }, () => Number(tasks)) : []
  })
  return perNode[Number(env.SLURM_NODEID)] ?? 1
}

function count(env: Env, name: string, min = 0): number {
  const text = env[name]
  const value = Number(text)
  if (/^\d+$/.test(text ?? '') && Number.isSafeInteger(value) && value >= min) return value
  throw fault(name, text, `a whole number ≥ ${min}`)
}

function fault(name: string, value: string | undefined, range: string): RapoError {
  return new RapoError(
    'ERR_RAPO_CONFIG',
    `the environment variable ${name} is ${JSON.stringify(value)}; it must be ${range}`,
  )
}

/**
 * Where Gloo listens: at the interface that GLOO_SOCKET_IFNAME names; on one host at its loopback address; otherwise at the
 * address from which this host reaches rank 0. Gloo's own choice, the address of the host's name, is a loopback address
 * on Debian, which no other host can reach.
 */
export async function listenAt(
  { size, localSize, host, port }: Place,
  env: Env = process.env,
): Promise<{ interface: string; address: string }> {
  const named = env.GLOO_SOCKET_IFNAME?.split(',')[0]?.trim()
  if (named) {
    const known = Object.keys(networkInterfaces())
    if (known.includes(named)) return { interface: named, address: '' }
    throw fault('GLOO_SOCKET_IFNAME', named, `an interface of this host: ${known.join(', ')}`)
  }
  if (localSize === size) return { interface: '', address: '127.0.0.1' }
  const address = await addressTowards(host, port)
  return { interface: '', address: isLoopback(address) ? (firstOutside() ?? address) : address }
}

/** The own address of packets to that host. No packet is sent. */
async function addressTowards(host: string, port: number): Promise<string> {
  try {
    const { address, family } = await lookup(host)
    const socket = createSocket(family === 6 ? 'udp6' : 'udp4')
    try {
      await new Promise<void>((resolve, reject) => {
        socket.once('error', reject)
        socket.connect(port, address, resolve)
      })
      return socket.address().address
    } finally {
      socket.close()
    }
  } catch (cause) {
    throw new RapoError(
      'ERR_RAPO_DISTRIBUTED',
      `the host of rank 0, MASTER_ADDR ${host}, cannot be reached: ${(cause as Error).message}`,
      { cause },
    )
  }
}

const isLoopback = (address: string) => address.startsWith('127.') || address === '::1'

function firstOutside(): string | undefined {
  const all = Object.values(networkInterfaces()).flatMap(addresses => addresses ?? [])
  return all.find(({ internal, family }) => !internal && family === 'IPv4')?.address
}
