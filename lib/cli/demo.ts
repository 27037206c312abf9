/**
 * `rapo demo`, the main job of npm start: the bundled model trained with GRPO and with RAPO, then pass@k of base,
 * GRPO-RKL and RAPO side by side, as a table and as an HTML report.
 */
import { type ChildProcess, fork } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { RapoError } from '../base/errors.js'
import { packageRoot } from '../base/package.js'
import { printLine } from '../base/text.js'
import { loadConfig } from '../config/load.js'
import { type EvalResult, formatPassAtK } from '../eval/groups.js'
import { writeReport } from '../report/page.js'
import { readLatestCheckpoint } from '../train/checkpoint.js'
import { createMultiProgress } from './progress.js'
import { SAME_MS } from './stop.js'

export interface DemoOptions {
  /** Where the runs and the report go. */
  readonly output: string
  /** Default: as configured. */
  readonly steps?: number
  /** Samples a problem; default as configured. */
  readonly n?: number
  /** Keep finished runs and measurements that are there already. */
  readonly reuse?: boolean
}

const methods = [
  { name: 'GRPO-RKL', dir: 'countdown-grpo' },
  { name: 'RAPO', dir: 'countdown-rapo' },
]

/** Throws RapoError with what a failed part printed. */
export async function demo(options: DemoOptions): Promise<void> {
  const start = performance.now()
  const inPackage = (...parts: string[]) => path.relative('', path.join(packageRoot, ...parts))
  const configOf = (dir: string) => inPackage('configs', `${dir}.yaml`)
  const base = inPackage('models', 'countdown-base')
  // Paths in the configurations are relative to the package, wherever the demo runs.
  const placed = (dir: string) => [
    '--config',
    configOf(dir),
    '--data.eval',
    inPackage('data', 'countdown', 'test.jsonl'),
  ]
  const measured = options.n === undefined ? [] : ['--n', String(options.n)]
  const baseRun = path.join(options.output, 'countdown-base')
  mkdirSync(options.output, { recursive: true })

  const crew = new Crew()
  const isDone = (file: string) => (options.reuse ?? false) && existsSync(file)
  const measure = async (name: string, model: string, run: string, config: string) => {
    if (isDone(path.join(run, 'eval.json'))) return
    await crew.run(name, [
      'eval',
      '--model',
      model,
      '--name',
      name,
      '--output',
      run,
      ...placed(config),
      ...measured,
    ])
  }
  const chains = methods.map(({ name, dir }) => async () => {
    const run = path.join(options.output, dir)
    const steps = options.steps === undefined ? {} : { 'run.steps': options.steps }
    const config = loadConfig(configOf(dir), steps)
    const isTrained = isDone(run) && readLatestCheckpoint(run)?.trainer.step === config.run.steps
    if (!isTrained) {
      const model = ['--model.dir', base, '--data.train', inPackage('data', 'countdown', 'train.jsonl')]
      const size = ['--run.steps', String(config.run.steps)]
      await crew.run(name, ['train', ...placed(dir), ...model, ...size, '--run.output', run, '--overwrite'])
    }
    await measure(name, run, run, dir)
  })
  const results = methods.map(({ dir }) => path.join(options.output, dir))
  try {
    await inTurns([...chains, () => measure('base', base, baseRun, methods[0]!.dir)], availableParallelism())
  } catch (error) {
    throw crew.failure ?? error
  } finally {
    crew.dismiss()
  }

  const evals = [baseRun, ...results].map(
    run => JSON.parse(readFileSync(path.join(run, 'eval.json'), 'utf8')) as EvalResult,
  )
  const report = path.join(options.output, 'report.html')
  await writeReport({ runs: results, base: baseRun, output: report })
  const seconds = Math.round((performance.now() - start) / 1000)
  const n = evals[0]!.samplesPerProblem
  printLine(
    `\npass@k on problems that were not trained on, from ${n} samples each\n\n${formatPassAtK(evals)}\n`,
  )
  printLine(`${seconds} s. The report: ${pathToFileURL(path.resolve(report)).href}`)
}

/** The processes at work, one thread each, with their progress on one board. */
class Crew {
  private readonly progress = createMultiProgress()
  private readonly children = new Set<ChildProcess>()
  private isStopping = false
  private stoppedAt = 0
  /** What ended the work, where it was no Ctrl-C. */
  failure: RapoError | undefined

  constructor() {
    process.on('SIGINT', this.stop).on('SIGTERM', this.stop)
  }

  /** Runs this command line in a process of its own; throws RapoError with what it printed where it fails. */
  async run(name: string, args: readonly string[]): Promise<void> {
    if (this.isStopping) throw new RapoError('ERR_RAPO_ABORTED', 'stopped')
    const child = fork(process.argv[1]!, [...args, '--run.threads', '1'], {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      env: { ...process.env, RAPO_PROGRESS: 'ipc' },
    })
    this.children.add(child)
    this.progress.attach(name, child)
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

  /** First Ctrl-C: the runs save and end. Second: at once. */
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

/** Runs tasks in order, at most `limit` at once; the first failure is thrown when nothing runs any more. */
async function inTurns(tasks: readonly (() => Promise<void>)[], limit: number): Promise<void> {
  const queue = [...tasks]
  const worker = async () => {
    for (let task = queue.shift(); task; task = queue.shift()) {
      try {
        await task()
      } catch (error) {
        queue.length = 0
        throw error
      }
    }
  }
  const workers = Array.from({ length: Math.max(1, Math.min(limit, tasks.length)) }, worker)
  const failed = (await Promise.allSettled(workers)).find(result => result.status === 'rejected')
  if (failed) throw failed.reason
}
