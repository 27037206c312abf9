/** Ctrl-C: the first asks the work to end, another one quits at once. */

import { RapoError } from '../base/errors.js'

/** A signal that follows another one sooner is the same one: launchers and terminals pass it on a second time. Milliseconds. */
export const SAME_MS = 1_000

export interface StopSource extends NodeJS.EventEmitter {
  exit(code: number): void
}

export interface StopOptions {
  /** In place of process: for tests. */
  readonly source?: StopSource
  /** Milliseconds that never go back; for tests. */
  readonly clock?: () => number
  /** A forked run (rapo demo) is asked by its parent's message 'stop', or by the parent's end, not by the terminal. */
  readonly isForked?: boolean
  /** Milliseconds from the first signal until `abort` is aborted. Default 1000. */
  readonly grace?: number
  /** Milliseconds from then until the process exits all the same. Default: it does not. */
  readonly last?: number
}

export interface Stopping {
  /** The first signal, once there was one. */
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
