/** Ctrl-C: the first asks the work to end, the second ends the process at once. */

import { RapoError } from '../base/errors.js'

/** Two signals within this time count as one, since launchers and terminals may deliver a signal twice. Milliseconds. */
export const SAME_MS = 1_000

export interface StopSource extends NodeJS.EventEmitter {
  exit(code: number): void
}

export interface StopOptions {
  /** Replaces `process` in tests. */
  readonly source?: StopSource
  /** A monotonic clock in milliseconds; for tests. */
  readonly clock?: () => number
  /** True in a process that another rapo command started: the parent's message 'stop' or its end asks to stop, not the terminal. */
  readonly isForked?: boolean
  /** Milliseconds from the first signal until `abort` is aborted. Default 1000. */
  readonly grace?: number
  /** Milliseconds from that abort until the process exits in any case. Default: never. */
  readonly last?: number
}

export interface Stopping {
  /** The first signal; undefined before it. */
  readonly signal: NodeJS.Signals | undefined
  /** Aborted `grace` after it; the reason is a RapoError. */
  readonly abort: AbortSignal
  /** How a process that it ended exits. */
  readonly exitCode: number
  release(): void
}

/** Calls onFirst at the first SIGINT or SIGTERM; a second one, a second or more later, exits at once. */
export function listenForStop(onFirst: () => void, options: StopOptions = {}): Stopping {
  const {
    source = process as StopSource,
    clock = () => performance.now(),
    isForked = false,
    grace = 1_000,
    last,
  } = options
  const abort = new AbortController()
  let first: { signal: NodeJS.Signals; time: number } | undefined
  let timer: NodeJS.Timeout | undefined
  const exitCode = () => (first?.signal === 'SIGTERM' ? 143 : 130)
  const stop = (signal: NodeJS.Signals) => {
    if (first) {
      if (clock() - first.time >= SAME_MS) source.exit(130)
      return
    }
    first = { signal, time: clock() }
    timer = setTimeout(() => {
      abort.abort(new RapoError('ERR_RAPO_ABORTED', `stopped by ${signal}`))
      if (last !== undefined) timer = setTimeout(() => source.exit(exitCode()), last)
    }, grace)
    onFirst()
  }
  const onInterrupt = () => !isForked && stop('SIGINT')
  const onTerminate = () => stop('SIGTERM')
  const onMessage = (message: unknown) => message === 'stop' && stop('SIGTERM')
  const listeners = [
    ['SIGINT', onInterrupt],
    ['SIGTERM', onTerminate],
    ...(isForked
      ? ([
          ['message', onMessage],
          ['disconnect', onTerminate],
        ] as const)
      : []),
  ] as const
  for (const [event, listener] of listeners) source.on(event, listener)
  if (isForked) process.channel?.unref()
  return {
    get signal() {
      return first?.signal
    },
    abort: abort.signal,
    get exitCode() {
      return exitCode()
    },
    release() {
      clearTimeout(timer)
      for (const [event, listener] of listeners) source.off(event, listener)
    },
  }
}
