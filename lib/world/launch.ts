/** Starts the ranks of a run on this machine, as torchrun does, where there is no torchrun. */
import { type ChildProcess, spawn } from 'node:child_process'
import { constants } from 'node:os'
import { RapoError } from '../base/errors.js'
import { openStore } from './world.js'

export interface LaunchOptions {
  /** The program and its arguments, the same for every rank. */
  readonly command: readonly [string, ...string[]]
  readonly processes: number
  readonly env?: NodeJS.ProcessEnv
  /** Of the variables that make the world, those to be other ones: for tests. */
  readonly world?: Readonly<Record<string, string>>
  /** Told of the first process that failed, once. */
  readonly onFailure?: (message: string) => void
  /** Where the output of the processes goes; default: to this process's own. */
  readonly onOutput?: (rank: number, stream: 'stdout' | 'stderr', text: string) => void
  /** Milliseconds; only tests change them. After a failure the others end by themselves, are asked to, are killed. */
  readonly patience?: { readonly ask: number; readonly kill: number }
}

/**
 * Runs the command in `processes` processes that meet as the ranks of one world, and waits for all of them. When one fails,
 * the others are ended. Signals that this process gets are passed on. Returns the exit code of the first that failed, or 0.
 */
export async function launchRanks(options: LaunchOptions): Promise<number> {
  const { command, processes, env = process.env, onFailure, onOutput } = options
  const { ask, kill } = options.patience ?? { ask: 5_000, kill: 30_000 }
  const shared = {
    ...{ WORLD_SIZE: `${processes}`, LOCAL_WORLD_SIZE: `${processes}` },
    ...{ MASTER_ADDR: '127.0.0.1', MASTER_PORT: `${openStore()}`, TORCHELASTIC_USE_AGENT_STORE: 'True' },
    ...{ TORCHELASTIC_RUN_ID: `rapo-${process.pid}`, TORCHELASTIC_RESTART_COUNT: '0' },
    ...options.world,
  }
  const [program, ...args] = command
  const children = new Map<number, ChildProcess>()
  const sendAll = (name: NodeJS.Signals) => {
    for (const child of children.values()) child.kill(name)
  }
  let exitCode = 0
  const timers: NodeJS.Timeout[] = []
  const ended = (rank: number, code: number | null, name: NodeJS.Signals | null) => {
    children.delete(rank)
    if (code === 0 || exitCode !== 0) return
    exitCode = code ?? 128 + (constants.signals[name!] ?? 0)
    const how = name === null ? `ended with exit code ${code}` : `was ended by ${name}`
    // A run that was asked to stop has not failed.
    if (!isStopping) onFailure?.(`rank ${rank} of ${processes} ${how}`)
    timers.push(setTimeout(sendAll, ask, 'SIGTERM'), setTimeout(sendAll, kill, 'SIGKILL'))
  }
  let isStopping = false
  const pass = (name: NodeJS.Signals) => {
    isStopping = true
    sendAll(name)
  }
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.on(name, pass)
  try {
    const all = Array.from({ length: processes }, (_, rank) => {
      const child = spawn(program, args, {
        env: { ...env, ...shared, RANK: `${rank}`, LOCAL_RANK: `${rank}` },
        stdio: ['ignore', onOutput ? 'pipe' : 'inherit', onOutput ? 'pipe' : 'inherit'],
      })
      children.set(rank, child)
      for (const stream of ['stdout', 'stderr'] as const) {
        child[stream]?.setEncoding('utf8').on('data', (text: string) => onOutput?.(rank, stream, text))
      }
      return new Promise<void>((resolve, reject) => {
        child.once('error', cause => {
          children.delete(rank)
          sendAll('SIGKILL')
          const why = `cannot start ${program}: ${cause.message}`
          reject(new RapoError('ERR_RAPO_SETUP', why, { cause }))
        })
        child.once('exit', (code, name) => ended(rank, code, name))
        child.once('close', () => resolve())
      })
    })
    await Promise.all(all)
    return exitCode
  } finally {
    for (const timer of timers) clearTimeout(timer)
    for (const name of ['SIGINT', 'SIGTERM'] as const) process.off(name, pass)
  }
}
