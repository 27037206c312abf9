/**
 * `rapo demo`, the main job of npm start: the bundled model trained with GRPO and with RAPO, then pass@k of base,
 * GRPO-RKL and RAPO side by side, as a table and as an HTML report.
 */
import { existsSync, readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { makeDirectories } from '../base/files.js'
import { packageRoot } from '../base/package.js'
import { printLine } from '../base/text.js'
import { loadConfig } from '../config/load.js'
import { type EvalResult, formatPassAtK } from '../eval/groups.js'
import { writeReport } from '../report/page.js'
import { readLatestCheckpoint } from '../train/checkpoint.js'
import { Crew, inTurns } from './crew.js'

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
  const oneThread = ['--run.threads', '1']
  const measured = options.n === undefined ? [] : ['--n', String(options.n)]
  const baseRun = path.join(options.output, 'countdown-base')
  makeDirectories(options.output)

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
      ...oneThread,
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
      await crew.run(name, [
        'train',
        ...placed(dir),
        ...model,
        ...size,
        '--run.output',
        run,
        '--overwrite',
        ...oneThread,
      ])
    }
    await measure(name, run, run, dir)
  })
  const results = methods.map(({ dir }) => path.join(options.output, dir))
  try {
    await inTurns([...chains, () => measure('base', base, baseRun, methods[0]!.dir)], availableParallelism())
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
