/** Bars of what a command waits for before its own work begins: downloads from the hub, models that are read. */
import { createProgress, type Progress, type ProgressTarget } from './progress.js'
import { isSpeaker } from './ranks.js'

export interface Transfers {
  /** Bytes so far, of how many, and what they are of: each name has a bar of its own, which ends when all bytes are there. */
  readonly onProgress: (done: number, total: number, name: string) => void
  /** Prints a line above the bar; false if there is no bar. */
  log(line: string): boolean
  stop(): void
}

export function createTransfers(target: ProgressTarget = {}): Transfers {
  let progress: Progress | undefined
  let shown: string | undefined
  const stop = () => {
    progress?.stop()
    progress = undefined
  }
  return {
    onProgress(done, total, name) {
      if (!isSpeaker()) return
      if (name !== shown) stop()
      shown = name
      const isWhole = done >= total
      // What is there within the first fifth of a second needs no bar.
      if (!progress && isWhole) return
      progress ??= createProgress({ ...target, label: name, total: Math.ceil(total / 1e6), unit: 'MB' })
      progress.update(isWhole ? Math.ceil(total / 1e6) : Math.floor(done / 1e6))
      if (isWhole) stop()
    },
    log(line) {
      progress?.log(line)
      return progress !== undefined
    },
    stop,
  }
}
