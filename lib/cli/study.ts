/** `rapo study`: trains and measures every variant with every seed, then says what differs beyond chance. */
import { existsSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { RapoError } from '../base/errors.js'
import { makeDirectories, writeWhole } from '../base/files.js'
import { printError, printLine } from '../base/text.js'
import type { Config } from '../config/config.js'
import { evalTemperature } from '../config/eval.js'
import { readConfigFile } from '../config/file.js'
import { stringifyConfig } from '../config/load.js'
import { nameOf } from '../data/rows.js'
import type { EvalResult } from '../eval/groups.js'
import { configDifferences } from '../report/compare.js'
import { writeReport } from '../report/page.js'
import { baseDir, readStudy, runDir, type StudyPlan, type Variant } from '../study/plan.js'
import { formatStudy, readResult, summarizeStudy } from '../study/summary.js'
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
  const all = 2 * plan.seeds.length * plan.variants.length + Number(plan.hasBase)
  let done = 0
  const finish = (count = 1) => {
    done += count
    crew.progress.total('study', done, all, 'trainings and measurements')
  }

  const measure = async (slot: string, label: string, model: string, run: string, variant: Measured) => {
    if (!isMeasured(run, variant.config)) {
      const target = ['--model', model, '--name', variant.name, '--output', run]
      await crew.run(label, ['eval', '--config', variant.file, ...target, ...threads], slot)
    }
    finish()
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
  const fileOf = ({ dir }: Variant) => path.join(dir, 'variant.yaml')
  const tasks: ((place: number) => Promise<void>)[] = []
  if (plan.hasBase) {
    const first = plan.variants[0]!
    const base = { name: 'base', config: first.config, file: fileOf(first) }
    tasks.push(place => measure(`place ${place}`, 'base', first.config.model.dir, baseDir(plan), base))
  }
  // Seed by seed: what is done when a study is cut short can be compared.
  for (const seed of plan.seeds) {
    for (const variant of plan.variants) {
      tasks.push(async place => {
        const run = runDir(variant, seed)
        const { name, config } = variant
        // Its checkpoints may be gone: nothing needs them any more.
        if (isMeasured(run, config)) return finish(2)
        const [slot, label, file] = [`place ${place}`, `${name} seed-${seed}`, fileOf(variant)]
        const step = existsSync(run) ? readLatestCheckpoint(run)?.trainer.step : undefined
        if (step !== config.run.steps) {
          const own = ['--run.seed', String(seed), '--run.output', run]
          const how = step === undefined ? ['--config', file, ...own, '--overwrite'] : ['--resume', run]
          await crew.run(label, ['train', ...how, ...threads], slot)
        }
        finish()
        await measure(slot, label, run, run, { name, config, file })
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

/** What is measured: the name in tables, and the configuration with its file. */
interface Measured {
  readonly name: string
  readonly config: Config
  readonly file: string
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
  const difference = configDifferences([readConfigFile(file).values, config]).find(
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
function isMeasured(run: string, config: Config): boolean {
  const found = readResult(run)
  if (!found) return false
  const { topP, topK, minP, maxNewTokens } = config.sampling
  const { samples: samplesPerProblem, seed } = config.eval
  const wanted = {
    ...{ samplesPerProblem, seed, problems: nameOf(config.data.eval) },
    ...{ temperature: evalTemperature(config), topP, topK, minP, maxNewTokens },
  }
  return Object.entries(wanted).every(([field, value]) => found[field as keyof EvalResult] === value)
}

/** The tables, study.json and the report, of the runs that are measured. */
async function tell(plan: StudyPlan): Promise<void> {
  const isThere = (run: string) => readResult(run) !== undefined
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
