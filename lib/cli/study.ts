/** `rapo study`: trains and measures every variant with every seed, then says what differs beyond chance. */
import { existsSync, readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { parse } from 'yaml'
import { RapoError } from '../base/errors.js'
import { makeDirectories, writeWhole } from '../base/files.js'
import { printError, printLine } from '../base/text.js'
import type { Config } from '../config/config.js'
import { stringifyConfig } from '../config/load.js'
import type { EvalResult } from '../eval/groups.js'
import { configDifferences } from '../report/compare.js'
import { writeReport } from '../report/page.js'
import { baseDir, readStudy, runDir, type StudyPlan, type Variant } from '../study/plan.js'
import { formatStudy, summarizeStudy } from '../study/summary.js'
import { readLatestCheckpoint } from '../train/checkpoint.js'
import { Crew, inTurns } from './crew.js'

export interface StudyCommand {
  readonly config: string
  readonly quick?: boolean
  readonly output?: string
  /** Default: one a core. */
  readonly processes?: number
}

/** Throws RapoError where the plan is wrong, where Ctrl-C stopped the study, and where runs failed after all others are done. */
export async function study({ config, processes, ...options }: StudyCommand): Promise<void> {
  const plan = readStudy(config, options)
  for (const variant of plan.variants) {
    for (const seed of plan.seeds) checkSame(runDir(variant, seed), runConfig(variant, seed))
  }
  makeDirectories(plan.output)
  const cores = availableParallelism()
  const atOnce = processes ?? cores
  const threads = ['--run.threads', String(Math.max(1, Math.floor(cores / atOnce)))]
  const crew = new Crew()
  const failures: string[] = []
  const parts = new Parts(plan, crew)

  const measure = async (
    place: number,
    name: string,
    model: string,
    run: string,
    file: string,
    config: Config,
  ) => {
    if (!isMeasured(run, config)) {
      const target = ['--model', model, '--name', name, '--output', run]
      const label = run === model ? `${name} ${path.basename(run)}` : name
      await crew.run(label, ['eval', '--config', file, ...target, ...threads], `place ${place}`)
    }
    parts.finish()
  }
  const guarded = (work: (place: number) => Promise<void>) => async (place: number) => {
    try {
      await work(place)
    } catch (error) {
      if (!(error instanceof RapoError) || error.code === 'ERR_RAPO_ABORTED') throw error
      failures.push(error.message)
      crew.progress.log(error.message)
    }
  }
  const first = plan.variants[0]!
  const fileOf = ({ dir }: Variant) => path.join(dir, 'variant.yaml')
  const tasks: ((place: number) => Promise<void>)[] = []
  if (plan.hasBase) {
    const { config } = first
    tasks.push(place => measure(place, 'base', config.model.dir, baseDir(plan), fileOf(first), config))
  }
  // Seed by seed: what is done when a study is cut short can be compared.
  for (const seed of plan.seeds) {
    for (const variant of plan.variants) {
      tasks.push(async place => {
        const run = runDir(variant, seed)
        const { config } = variant
        // Its checkpoints may be gone: nothing needs them any more.
        if (isMeasured(run, config)) return parts.finish(2)
        const step = existsSync(run) ? readLatestCheckpoint(run)?.trainer.step : undefined
        if (step !== config.run.steps) {
          const fresh = [
            '--config',
            fileOf(variant),
            '--run.seed',
            String(seed),
            '--run.output',
            run,
            '--overwrite',
          ]
          const how = step === undefined ? fresh : ['--resume', run]
          await crew.run(`${variant.name} seed-${seed}`, ['train', ...how, ...threads], `place ${place}`)
        }
        parts.finish()
        await measure(place, variant.name, run, run, fileOf(variant), config)
      })
    }
  }
  try {
    for (const variant of plan.variants) {
      makeDirectories(variant.dir)
      writeWhole(fileOf(variant), stringifyConfig(variant.config))
    }
    await inTurns(tasks.map(guarded), atOnce)
  } finally {
    crew.dismiss()
  }
  await tell(plan)
  if (failures.length > 0) {
    throw new RapoError(
      'ERR_RAPO_INTERNAL',
      `${failures.length} of ${tasks.length} runs failed; the same command tries them again:\n${failures.join('\n')}`,
    )
  }
}

/** Counts trainings and measurements, and shows how many are done. */
class Parts {
  private done = 0
  private readonly all: number

  constructor(
    plan: StudyPlan,
    private readonly crew: Crew,
  ) {
    this.all = 2 * plan.seeds.length * plan.variants.length + Number(plan.hasBase)
  }

  finish(count = 1): void {
    this.done += count
    this.crew.progress.total('study', this.done, this.all, 'trainings and measurements')
  }
}

function runConfig({ config }: Variant, seed: number): Config {
  return { ...config, run: { ...config.run, seed } }
}

/** What may change between two calls of a study: where a run is, how fast it is, and how it is measured. */
const mayChange = /^(run\.(output|threads|keepCheckpoints)|data\.eval|eval\..*)$/

/** Throws ERR_RAPO_CONFIG where the directory holds a run of another configuration. */
function checkSame(run: string, config: Config): void {
  const file = path.join(run, 'config.yaml')
  if (!existsSync(file)) return
  const there = parse(readFileSync(file, 'utf8'), { logLevel: 'error' }) as Record<string, unknown>
  const wanted = parse(stringifyConfig(config)) as Record<string, unknown>
  const difference = configDifferences([there, wanted]).find(
    // A field that only this version has was at its default.
    ({ field, values: [before] }) => !mayChange.test(field) && before !== undefined,
  )
  if (!difference) return
  const [before, now] = difference.values
  throw new RapoError(
    'ERR_RAPO_CONFIG',
    `${path.resolve(run)} holds a run of another configuration: ${difference.field} is ${before} there, ${now ?? 'not set'} in the study; give the study another output, or delete the run`,
  )
}

/** Whether eval.json is there and was made as this configuration says. */
function isMeasured(run: string, { eval: { samples, seed }, sampling, data }: Config): boolean {
  const file = path.join(run, 'eval.json')
  if (!existsSync(file)) return false
  const { temperature, topP, topK, minP, maxNewTokens } = sampling
  const wanted = { samplesPerProblem: samples, seed, temperature, topP, topK, minP, maxNewTokens }
  const found = JSON.parse(readFileSync(file, 'utf8')) as EvalResult
  const isAlike = Object.entries(wanted).every(([field, value]) => found[field as keyof EvalResult] === value)
  return isAlike && path.basename(found.problems) === path.basename(String(data.eval))
}

/** The tables, study.json and the report, of the runs that are measured. */
async function tell(plan: StudyPlan): Promise<void> {
  const isThere = (run: string) => existsSync(path.join(run, 'eval.json'))
  const runs = plan.variants.flatMap(variant => plan.seeds.map(seed => runDir(variant, seed)).filter(isThere))
  if (runs.length === 0) return
  const summary = summarizeStudy(plan)
  writeWhole(path.join(plan.output, 'study.json'), `${JSON.stringify(summary, null, 2)}\n`)
  const report = path.join(plan.output, 'report.html')
  const base = baseDir(plan)
  const baseline = summary.groups.all!.variants.find(({ name }) => name === plan.baseline)?.name
  await writeReport({
    runs,
    ...(isThere(base) && { base }),
    ...(baseline !== undefined && { baseline }),
    output: report,
  })
  printLine(`\n${formatStudy(summary)}\n`)
  printError(`The report: ${pathToFileURL(path.resolve(report)).href}`)
}
