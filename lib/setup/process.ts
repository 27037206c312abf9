/** Runs subprocesses: short ones for their output, long ones with the output in a log file. */
import { spawn } from 'node:child_process'
import { createWriteStream, readFileSync } from 'node:fs'
import { finished } from 'node:stream/promises'
import { RapoError, reasonOf } from '../base/errors.js'
import { io } from '../base/files.js'

export interface Answer {
  /** The command started and exited with 0. */
  readonly ok: boolean
  readonly stdout: string
  /** If not ok: the last line on stderr, or the reason why the command did not run, as a phrase. */
  readonly problem: string
}

/** Runs a short command to its end; never throws. Its working directory is /, so that no local file shadows a module. */
export function ask(
  command: string,
  args: readonly string[],
  options: { env?: NodeJS.ProcessEnv; timeoutMs?: number } = {},
): Promise<Answer> {
  const { env = process.env, timeoutMs = 20_000 } = options
  return new Promise(resolve => {
    // spawn's own timeout is not used: its timer keeps this process alive if the command does not exist.
    const signal = AbortSignal.timeout(timeoutMs)
    const child = spawn(command, args, {
      cwd: '/',
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
      signal,
      killSignal: 'SIGKILL',
    })
    let stdout = ''
    let stderr = ''
    child.stdout.setEncoding('utf8').on('data', text => {
      stdout += text
    })
    child.stderr.setEncoding('utf8').on('data', text => {
      stderr += text
    })
    const fail = (problem: string) => resolve({ ok: false, stdout, problem })
    child.on('error', error => {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') fail(`no ${command} on PATH`)
      else fail(signal.aborted ? `${command} gave no answer within ${timeoutMs / 1000} s` : error.message)
    })
    child.on('close', code => {
      if (code === 0) resolve({ ok: true, stdout, problem: '' })
      else fail(stderr.trim().split('\n').at(-1) || `${command} ended with ${code ?? 'a signal'}`)
    })
  })
}

export interface WorkOptions {
  readonly env: NodeJS.ProcessEnv
  /** Both streams are appended here. */
  readonly log: string
  readonly onLine?: (line: string) => void
  readonly cwd?: string
  readonly signal?: AbortSignal
}

/**
 * Runs a long command. Throws ERR_RAPO_SETUP with the log's last lines and path unless the command exits with 0. Throws
 * ERR_RAPO_ABORTED if this process is told to end meanwhile; the command and all its children are ended first.
 */
export async function work(
  what: string,
  command: string,
  args: readonly string[],
  options: WorkOptions,
): Promise<void> {
  options.signal?.throwIfAborted()
  const log = createWriteStream(options.log, { flags: 'a' })
  // An error that nobody listens for would end the process; finished() below reports the error.
  log.on('error', () => {})
  log.write(`$ ${[command, ...args].join(' ')}\n`)
  let stopped: string | undefined
  const end = await new Promise<string>(resolve => {
    // A process group of its own, since CMake does not pass signals on to the compilers.
    const isGroup = process.platform !== 'win32'
    const child = spawn(command, args, {
      env: options.env,
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: isGroup,
      ...(options.cwd ? { cwd: options.cwd } : {}),
    })
    const stop = (why: string) => {
      stopped = why
      try {
        if (child.pid) process.kill(isGroup ? -child.pid : child.pid, 'SIGTERM')
      } catch {} // the process has ended already
    }
    const onAbort = () => stop(reasonOf(options.signal?.reason))
    for (const signal of signals) process.on(signal, stop)
    options.signal?.addEventListener('abort', onAbort)
    for (const stream of [child.stdout, child.stderr]) {
      let rest = ''
      stream.setEncoding('utf8').on('data', (text: string) => {
        log.write(text)
        const lines = (rest + text).split('\n')
        rest = lines.pop() ?? ''
        for (const line of lines) options.onLine?.(line)
      })
    }
    const finish = (how: string) => {
      for (const signal of signals) process.off(signal, stop)
      options.signal?.removeEventListener('abort', onAbort)
      resolve(how)
    }
    child.on('error', error => finish(error.message))
    child.on('close', (code, signal) => finish(signal ? `killed by ${signal}` : `exit status ${code}`))
  })
  log.end()
  await io(`cannot write ${options.log}`, () => finished(log))
  if (stopped) {
    throw new RapoError(
      'ERR_RAPO_ABORTED',
      `${what} was interrupted (${stopped}); the next set-up repeats it`,
    )
  }
  if (end === 'exit status 0') return
  throw new RapoError(
    'ERR_RAPO_SETUP',
    `${what} failed (${end})\n${excerpt(options.log)}\nthe whole log: ${options.log}`,
  )
}

const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/** The log's last lines, preceded by the first line with an error, which is often the cause of the rest. */
function excerpt(file: string): string {
  const lines = readFileSync(file, 'utf8').trimEnd().split('\n')
  const end = Math.max(0, lines.length - 20)
  const first = lines.findIndex(line => /\berror\b/i.test(line))
  const head = first >= 0 && first < end ? [...lines.slice(first, Math.min(first + 10, end)), '…'] : []
  return [...head, ...lines.slice(end)].map(line => `  | ${line}`).join('\n')
}
