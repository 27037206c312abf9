/**
 * A slow reward function: it runs the completion as a program. verify() returns a promise. rapo calls it for the whole batch
 * at once, and a pool of worker threads takes the completions one by one. If a program does not end, or takes all memory,
 * its worker is replaced and the completion gets no reward.
 */
import { once } from 'node:events'
import { availableParallelism } from 'node:os'
import { setTimeout } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import type { CountdownAnswer, Verdict, Verifier } from 'rapo'
import { isAnswer } from './verifier.js'

export interface Job {
  readonly program: string
  readonly answer: CountdownAnswer
}

/**
 * Milliseconds that one program may run. The configuration's task.timeout cannot replace this limit: it includes the time in
 * the queue, and it only ends the waiting. A program that does not end would occupy its worker for ever.
 */
const TIME_LIMIT = 2_000

class Pool {
  /** The largest number of jobs that ran at the same time. */
  mostAtOnce = 0
  private busy = 0
  private readonly idle: Worker[] = []
  private readonly waiting: (() => void)[] = []

  constructor(private readonly size: number) {}

  async run(job: Job): Promise<Verdict> {
    while (this.busy >= this.size) await new Promise<void>(resolve => this.waiting.push(resolve))
    this.mostAtOnce = Math.max(this.mostAtOnce, ++this.busy)
    let worker = this.idle.pop()
    try {
      worker ??= await this.start()
      worker.ref()
      const verdict = await ask(worker, job)
      if (!verdict) {
        await worker.terminate()
        return { reward: 0, reason: `ended its worker, or did not end within ${TIME_LIMIT / 1000} s` }
      }
      worker.unref() // an idle pool does not keep the process alive
      this.idle.push(worker)
      return verdict
    } finally {
      this.busy--
      this.waiting.shift()?.()
    }
  }

  /** A worker that has reported that it is ready, so that its loading does not count as time of the first job. */
  private async start(): Promise<Worker> {
    const worker = new Worker(new URL('./worker.js', import.meta.url), {
      resourceLimits: { maxOldGenerationSizeMb: 64 },
    })
    await once(worker, 'message')
    worker.on('error', () => {}) // told by ask; in an idle one there is nobody to tell
    worker.once('exit', () => {
      const at = this.idle.indexOf(worker)
      if (at >= 0) this.idle.splice(at, 1)
    })
    return worker
  }
}

/** undefined if the time is over or the worker has ended. */
function ask(worker: Worker, job: Job): Promise<Verdict | undefined> {
  const done = new AbortController()
  const { signal } = done
  const reply = once(worker, 'message', { signal }).then(
    ([verdict]) => verdict as Verdict,
    () => undefined,
  )
  const timeUp = setTimeout(TIME_LIMIT, undefined, { signal })
  worker.postMessage(job)
  return Promise.race([reply, timeUp]).finally(() => done.abort())
}

export const pool = new Pool(availableParallelism())

export default {
  checkAnswer: answer => (isAnswer(answer) ? undefined : 'answer must be { numbers, target }'),
  verify: (completion, answer) => pool.run({ program: completion, answer: answer as CountdownAnswer }),
} satisfies Verifier
