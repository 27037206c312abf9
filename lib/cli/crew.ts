/** Processes that train and measure at the same time, with their progress on one board. */
import { type ChildProcess, fork } from 'node:child_process'
import { RapoError } from '../base/errors.js'
import { createMultiProgress } from './progress.js'
import { SAME_MS } from './stop.js'

/** Command lines of rapo, each in a process of its own. The first Ctrl-C asks all to save and end, the second one ends all. */
export class Crew {
  readonly progress = createMultiProgress()
  private readonly children = new Set<ChildProcess>()
  private stoppedAt = 0
  private isStopping = false

  constructor() {
    process.on('SIGINT', this.stop).on('SIGTERM', this.stop)
  }

  /**
   * Runs this command line. `name` is shown beside its progress, which takes the place of what was shown in `slot` before.
   * Throws RapoError with what the process printed where it fails.
   */
  async run(name: string, args: readonly string[], slot = name): Promise<void> {
    if (this.isStopping) throw new RapoError('ERR_RAPO_ABORTED', 'stopped')
    const child = fork(process.argv[1]!, args, {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      env: { ...process.env, RAPO_PROGRESS: 'ipc' },
    })
    this.children.add(child)
    this.progress.attach(name, child, slot)
    let errors = ''
    child.stderr!.setEncoding('utf8').on('data', text => {
      errors += text
    })
    const code = await new Promise<number | null>((resolve, reject) => {
      child.on('error', reject)
      child.on('close', resolve)
    })
    this.children.delete(child)
    if (this.isStopping) throw new RapoError('ERR_RAPO_ABORTED', 'stopped; what was trained is saved')
    if (code !== 0)
      throw new RapoError('ERR_RAPO_INTERNAL', `${name}: ${errors.trim() || `ended with ${code}`}`)
  }

  private readonly stop = () => {
    if (this.isStopping && performance.now() - this.stoppedAt < SAME_MS) return
    if (!this.isStopping) this.stoppedAt = performance.now()
    for (const child of this.children) this.isStopping ? child.kill('SIGKILL') : child.send('stop', () => {})
    this.isStopping = true
  }

  dismiss(): void {
    for (const child of this.children) child.kill('SIGTERM')
    this.progress.stop()
    process.off('SIGINT', this.stop).off('SIGTERM', this.stop)
  }
}

/**
 * Runs tasks in order, at most `limit` at once; a task is told which of the `limit` places it has. The first failure is
 * thrown when nothing runs any more, and keeps further tasks from beginning.
 */
export async function inTurns(
  tasks: readonly ((place: number) => Promise<void>)[],
  limit: number,
): Promise<void> {
  const queue = [...tasks]
  const worker = async (place: number) => {
    for (let task = queue.shift(); task; task = queue.shift()) {
      try {
        await task(place)
      } catch (error) {
        queue.length = 0
        throw error
      }
    }
  }
  const workers = Array.from({ length: Math.max(1, Math.min(limit, tasks.length)) }, (_, i) => worker(i))
  const failed = (await Promise.allSettled(workers)).find(result => result.status === 'rejected')
  if (failed) throw failed.reason
}
