/** The commands of the command line: each takes options, calls the library and prints a few lines. */
import { existsSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { checkWritable, withPlace, writeWhole } from '../base/files.js'
import { moments } from '../base/stats.js'
import { plural, printError, printLine } from '../base/text.js'
import type { Config } from '../config/config.js'
import { fields } from '../config/help.js'
import { loadConfig } from '../config/load.js'
import { dropUndefined } from '../config/values.js'
import { summarizeRows } from '../data/problems.js'
import { nameOf } from '../data/rows.js'
import { evaluate } from '../eval/evaluate.js'
import { formatPassAtK } from '../eval/groups.js'
import { resolveModel } from '../model/hub.js'
import type { Device, ModelDType } from '../model/policy.js'
import type { Extraction, Tolerance } from '../reward/math.js'
import { figure2 } from '../theory/theory.js'
import { type Checkpoint, readBestCheckpoint, readLatestCheckpoint } from '../train/checkpoint.js'
import { train } from '../train/train.js'
import { PeerError } from '../world/peer-error.js'
import { generateLines, type InferOptions, logprobLines } from './infer.js'
import { trainingOutlook } from './outlook.js'
import { explainPlaces } from './places.js'
import type { Plan } from './plan.js'
import { createProgress, type Progress } from './progress.js'
import { isSpeaker, launchHere, refuseRanks } from './ranks.js'
import { listenForStop } from './stop.js'
import { activityOf, describeEvaluation, formatSample } from './train-output.js'
import { createTransfers } from './transfers.js'

/** Whether another rapo command started this process. That command shows the run's name before each label and decides when the run stops. */
const isForked = process.send !== undefined

type Values = Readonly<Record<string, unknown>>

/** Says what is being done before a bar can; to a person, not to the parent of a fork, which shows what failed. */
function notify(text: string): void {
  if (!isForked && isSpeaker()) printError(text)
}

/** The fields of the configuration among a command's options. */
function overridesOf(values: Values): Record<string, unknown> {
  return Object.fromEntries(fields.map(({ path }) => [path, values[path]]))
}

/** A resumed run has them already; of the last two its config.yaml holds every field that they stand for. */
const notWithResume = [
  ...['config', 'overwrite', 'dryRun', 'run.output', 'model.dir'],
  ...['objective.preset', 'objective.surrogate'],
]

interface TrainValues {
  readonly config?: string
  readonly resume?: string
  readonly overwrite?: boolean
  readonly processes?: number
  readonly dryRun?: boolean
}

/** loadConfig; where no file was named and something is missing, the fault begins with a hint. */
function loadNamed(file: string | undefined, overrides: Values, hint: () => string): Config {
  try {
    return loadConfig(file, overrides)
  } catch (error) {
    const isHelped = file === undefined && error instanceof RapoError && / is missing: /.test(error.message)
    throw isHelped ? new RapoError(error.code, `${hint()}\n${error.message}`, { cause: error }) : error
  }
}

export async function runTrain(values: TrainValues & Values): Promise<void> {
  const { resume, config: file } = values
  const overrides = overridesOf(values)
  if (resume !== undefined) {
    const clash = notWithResume.find(name => values[name] !== undefined)
    if (clash) {
      const option = clash === 'dryRun' ? 'dry-run' : clash
      throw new RapoError('ERR_RAPO_CONFIG', `--${option} does not go together with --resume`)
    }
    if (!existsSync(path.join(resume, 'config.yaml'))) {
      const run = /^(.+)[\\/]checkpoints(?:[\\/][^\\/]+)?[\\/]?$/.exec(resume)?.[1]
      const isPart = run !== undefined && existsSync(path.join(run, 'config.yaml'))
      const hint = isPart ? `; the run is ${run}, and goes on from its newest checkpoint` : ''
      throw new RapoError('ERR_RAPO_CONFIG', `${resume} is no run directory: it has no config.yaml${hint}`)
    }
    overrides['run.output'] = resume
  }
  const own = resume === undefined ? file : path.join(resume, 'config.yaml')
  const config = loadNamed(own, overrides, () => {
    const found = readdirSync('.').filter(name => /\.ya?ml$/.test(name))
    const meant = found.includes('rapo.yaml') ? 'rapo.yaml' : found.length === 1 ? found[0]! : 'FILE'
    return `no configuration was named, as in ${invocation()} train --config ${quote(meant)}`
  })
  config.run.output ||= path.join('runs', file ? path.parse(file).name : 'run')
  if (values.dryRun) {
    refuseRanks('--dry-run')
    return runDryRun(config, file)
  }
  const { output, steps } = config.run
  if (file !== undefined && path.resolve(file) === path.resolve(output, 'config.yaml')) {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `run.output is ${output}: the run would write its config.yaml over ${file}; choose another directory`,
    )
  }

  if (await launchHere(values.processes)) return
  const speaks = isSpeaker()
  let isStarted = false
  let progress: Progress | undefined
  const rewards: number[] = []
  const outlook = trainingOutlook(config)
  let activity: string | undefined
  const stopping = listenForStop(
    () => {
      // Before the first step there is nothing to save.
      if (!isStarted) process.exit(stopping.exitCode)
      progress?.log('finishing the step and saving; once more quits at once')
    },
    { isForked },
  )
  const isStopped = (error: unknown) =>
    (stopping.abort.aborted && error === stopping.abort.reason) ||
    (error instanceof PeerError && error.isAbort)
  const processes = values.processes === undefined ? '' : ` --processes ${values.processes}`
  const resumeCommand = `${invocation()} train --resume ${quote(output)}${processes}`
  const transfers = createTransfers()
  if (config.data.train.length > 0)
    notify(
      `${resume === undefined ? 'opening' : 'going on with'} ${output}: reading ${nameOf(config.data.train)} …`,
    )
  let stepsDone: number
  try {
    stepsDone = await train(config, {
      onDownload: transfers.onProgress,
      onLoading: transfers.onProgress,
      resume: resume !== undefined,
      overwrite: values.overwrite ?? false,
      onUnusable: listUnusable,
      onNotice: text => {
        if (progress) progress.log(text)
        else if (!transfers.log(text)) notify(text)
      },
      isStopping: () => stopping.signal !== undefined,
      signal: stopping.abort,
      onStart: done => {
        isStarted = true
        if (!speaks) return
        transfers.stop()
        const label = isForked ? 'train' : path.basename(output)
        progress = createProgress({ label, total: steps, unit: 'steps', done })
        outlook.start(done)
      },
      onPhase: (phase, done, total) => {
        const next = activityOf(phase, done, total)
        if (next !== activity) progress?.update(outlook.done, {}, { activity: next })
        activity = next
      },
      onEvaluation: evaluation => {
        outlook.evaluated(evaluation)
        progress?.log(describeEvaluation(evaluation))
      },
      onSamples: samples => progress?.log(samples.map(formatSample).join('\n')),
      onStep: metrics => {
        const { step, rewardMean, kl, entropy, completionLengthMean: length } = metrics
        rewards.push(rewardMean)
        const fields = { reward: moments(rewards.slice(-10)).mean, kl, entropy, length }
        progress?.update(step, fields, { left: outlook.stepped(metrics) })
      },
    })
  } catch (error) {
    const checkpoint = isStarted ? newestOf(output) : undefined
    if (isStopped(error) && checkpoint) {
      stepsDone = checkpoint.trainer.step
    } else {
      if (stopping.signal) process.exitCode = stopping.exitCode
      if (isStopped(error))
        throw new RapoError('ERR_RAPO_ABORTED', 'stopped before the first step was done: nothing is saved')
      if (!checkpoint || !(error instanceof RapoError) || !speaks) throw explainPlaces(error, config, file)
      const hint = `to go on from step ${checkpoint.trainer.step}: ${resumeCommand}`
      throw new RapoError(error.code, `${error.message}\n${hint}`, { cause: error })
    }
  } finally {
    transfers.stop()
    progress?.stop()
    stopping.release()
  }
  if (!speaks) {
    if (stepsDone < steps) process.exitCode = stopping.exitCode
  } else if (stepsDone < steps) {
    printLine(`saved after step ${stepsDone}; to go on: ${resumeCommand}`)
    process.exitCode = stopping.exitCode
  } else {
    printLine(
      `${plural(stepsDone, 'step')} done, in ${output}; to measure: ${invocation()} eval --model ${quote(output)}`,
    )
    const best = readBestCheckpoint(output)
    if (best) {
      const command = `${invocation()} eval --model ${quote(output)} --best`
      printLine(
        `the best evaluation was that after step ${best.trainer.step}: ${best.dir}; to measure it: ${command}`,
      )
    }
  }
}

async function runDryRun(config: Config, file: string | undefined): Promise<void> {
  const [{ dryRun }, { formatDryRun }] = await Promise.all([
    import('../train/dry-run.js'),
    import('./dry-run.js'),
  ])
  const transfers = createTransfers()
  const onNotice = (text: string) => {
    if (!transfers.log(text)) notify(text)
  }
  const { onProgress } = transfers
  const hooks = { onDownload: onProgress, onLoading: onProgress, onUnusable: listUnusable, onNotice }
  const trying = untilStopped(signal => dryRun(config, { ...hooks, signal }))
  const found = await trying.finally(transfers.stop).catch(error => {
    throw explainPlaces(error, config, file)
  })
  printLine(formatDryRun(found))
}

/** The newest checkpoint; undefined if it is damaged, so that the error of the run is the one to be shown. */
function newestOf(run: string) {
  try {
    return readLatestCheckpoint(run)
  } catch {
    return undefined
  }
}

/** Of --model, where that is a run: its newest checkpoint, or with --best its best. Throws ERR_RAPO_CONFIG where there is no best. */
function checkpointOf({ model, best }: { model: string; best?: boolean }): Checkpoint | undefined {
  const checkpoint = best ? readBestCheckpoint(model) : readLatestCheckpoint(model)
  if (checkpoint || !best) return checkpoint
  const why = readLatestCheckpoint(model)
    ? 'has no best checkpoint: run.keepBest keeps one, in a run with eval.every'
    : 'is no run with checkpoints'
  throw new RapoError('ERR_RAPO_CONFIG', `--best: ${model} ${why}`)
}

/** Runs what a signal ends at once: nothing is to be finished, and what is done already is kept. */
async function untilStopped<T>(body: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const stopping = listenForStop(() => {}, { isForked, grace: 0, last: 1_000 })
  try {
    return await body(stopping.abort)
  } catch (error) {
    if (stopping.signal) process.exitCode = stopping.exitCode
    throw error
  } finally {
    stopping.release()
  }
}

interface EvalValues {
  readonly model: string
  readonly best?: boolean
  readonly config?: string
  readonly n?: string
  readonly name?: string
  readonly output?: string
  readonly restart?: boolean
  readonly processes?: number
}

export async function runEval(values: EvalValues & Values): Promise<void> {
  const { model: given, n } = values
  const checkpoint = checkpointOf(values)
  const isRun = checkpoint !== undefined
  const overrides: Values = {
    ...overridesOf(values),
    'model.dir': given,
    ...(n !== undefined && { 'eval.samples': n }),
  }
  const file = values.config ?? (isRun ? path.join(given, 'config.yaml') : undefined)
  const config = loadNamed(file, overrides, () => {
    const isThere = existsSync(given)
    const what = isThere ? `${given} is no run` : `there is no directory ${withPlace(given)}`
    return `${what}: a run has settings of its own; for a model, --config names a file with them`
  })
  const name = values.name ?? path.basename(path.resolve(given))
  const output = values.output ?? (isRun ? given : path.join('runs', name))
  if (await launchHere(values.processes)) return

  let progress: Progress | undefined
  const transfers = createTransfers()
  if (config.data.eval.length > 0) notify(`measuring ${given}: reading ${nameOf(config.data.eval)} …`)
  const measuring = untilStopped(async signal =>
    evaluate(config, {
      dir: checkpoint?.dir ?? (await fetchModel(given)),
      model: values.best ? checkpoint!.dir : given,
      name,
      output,
      restart: values.restart ?? false,
      onNotice: notify,
      signal,
      onUnusable: listUnusable,
      onDownload: transfers.onProgress,
      onLoading: transfers.onProgress,
      onProgress: (done, total, solved) => {
        transfers.stop()
        const label = isForked ? 'eval' : `${name} eval`
        progress ??= createProgress({ label, total, unit: 'completions', done })
        progress.update(done, { 'problems solved': solved })
      },
    }),
  )
  const result = await measuring
    .finally(() => {
      transfers.stop()
      progress?.stop()
    })
    .catch(error => {
      throw explainPlaces(error, config, values.config)
    })
  if (!isSpeaker()) return
  printLine(formatPassAtK([result]))
  printLine(
    `\n${plural(result.tokens, 'token')} in ${result.seconds.toFixed(1)} s; written to ${path.join(output, 'eval.json')}`,
  )
}

/** Tells a person at a terminal what is waited for. */
function askForInput(input: string | undefined): void {
  if (input === undefined && process.stdin.isTTY)
    printError('no --input was named: type JSON lines, and end them with Ctrl-D')
}

function listUnusable(rows: readonly string[]): void {
  printError([`left out, ${rows.length} in all:`, ...summarizeRows(rows)].join('\n  '))
}

interface GradeValues {
  readonly task: string
  readonly extract: Extraction
  readonly tolerance?: Tolerance
  readonly input?: string
  readonly output?: string
  readonly completionField?: string
  readonly answerField?: string
  readonly referenceField?: string
}

export async function runGrade({ input, output, ...options }: GradeValues): Promise<void> {
  const { gradeLines } = await import('./grade.js')
  const transfers = createTransfers()
  const files = { ...(input && { input }), ...(output && { output }) }
  askForInput(input)
  const grading = untilStopped(signal =>
    gradeLines({ ...options, ...files, onDownload: transfers.onProgress, signal }),
  )
  const { correct, total, unusable } = await grading.finally(transfers.stop)
  printError(`${correct} of ${total} correct`)
  if (unusable.length === 0) return
  printError([`${plural(unusable.length, 'row')} not judged:`, ...summarizeRows(unusable)].join('\n  '))
  process.exitCode = 1
}

interface InferValues {
  readonly model: string
  readonly best?: boolean
  readonly config?: string
  readonly input?: string
  readonly output?: string
}

interface GenerateValues extends InferValues {
  readonly n: number
  readonly seed: number
}

export async function runGenerate(values: GenerateValues & Values): Promise<void> {
  const { n, seed } = values
  const config = inferConfig(values)
  const { maxNewTokens, temperature, topP, topK, minP } = config.sampling
  const sampling = { n, maxNewTokens, temperature, topP, topK, minP, seed }
  const servers = config.rollouts.engine === 'local' ? undefined : config
  await withProgress('generate', 'tokens at most', config, values, options =>
    generateLines(options, sampling, servers),
  )
}

export async function runLogprobs(values: InferValues & Values): Promise<void> {
  const config = inferConfig(values)
  if (values.temperature !== undefined && config.sampling.temperature === 0) {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      '--temperature is 0; it must be ≥ 0.000001: the logits are divided by it',
    )
  }
  // Greedy decoding records the log-probs of temperature 1, too.
  const temperature = config.sampling.temperature || 1
  await withProgress('logprobs', 'lines', config, values, options => logprobLines(options, temperature))
}

/** Options of generate and logprobs that stand for fields of the configuration. */
const inferFields = {
  ...{ template: 'data.template', systemPrompt: 'data.systemPrompt', problemField: 'data.problemField' },
  ...{ device: 'model.device', dtype: 'model.dtype', threads: 'run.threads' },
  ...{ maxNewTokens: 'sampling.maxNewTokens', temperature: 'sampling.temperature' },
  ...{ topP: 'sampling.topP', topK: 'sampling.topK', minP: 'sampling.minP' },
}

/** Of the file given, else of a run's own; of neither, the defaults. */
function inferConfig({ model, config: given, ...values }: InferValues & Values): Config {
  const file = given ?? (readLatestCheckpoint(model) ? path.join(model, 'config.yaml') : undefined)
  const withoutFile = { 'task.verifier': 'exact', 'sampling.maxNewTokens': 64 }
  return loadConfig(file, {
    ...(file === undefined && withoutFile),
    ...dropUndefined(overridesOf(values)),
    'model.dir': model,
    ...dropUndefined(
      Object.fromEntries(Object.entries(inferFields).map(([option, field]) => [field, values[option]])),
    ),
  })
}

async function withProgress(
  label: string,
  unit: string,
  { model, data, run }: Config,
  { input, output, best = false }: InferValues,
  body: (options: InferOptions) => Promise<void>,
): Promise<void> {
  let progress: Progress | undefined
  const transfers = createTransfers()
  const onLoading = transfers.onProgress
  const onProgress = (done: number, total: number) => {
    if (total === 0) return
    transfers.stop()
    progress ??= createProgress({ label, total, unit })
    progress.update(done)
  }
  const { template, systemPrompt, chatTemplateArguments, problemField } = data
  const options = dropUndefined({
    input,
    output,
    template,
    systemPrompt,
    chatTemplateArguments,
    problemField,
  })
  const { dtype, threads } = { ...model, ...run }
  askForInput(input)
  const working = untilStopped(async signal => {
    const dir = checkpointOf({ model: model.dir, best })?.dir ?? (await fetchModel(model.dir))
    const device = model.device as Device
    const hooks = { onProgress, onLoading, onNotice: notify, signal }
    await body({ model: dir, ...options, device, dtype, threads, ...hooks })
  })
  await working.finally(() => {
    transfers.stop()
    progress?.stop()
  })
}

interface MergeValues {
  readonly model: string
  readonly best?: boolean
  readonly output: string
  readonly dtype?: ModelDType
}

export async function runMerge({ model, best = false, output, dtype }: MergeValues): Promise<void> {
  const { mergeAdapter } = await import('./merge.js')
  const adapter = checkpointOf({ model, best })?.dir ?? model
  const transfers = createTransfers()
  const { onProgress } = transfers
  const merging = untilStopped(signal =>
    mergeAdapter({
      ...{ adapter, output, ...(dtype && { dtype }) },
      ...{ onProgress, onLoading: onProgress, onNotice: notify, signal },
    }),
  )
  await merging.finally(transfers.stop)
  printLine(path.resolve(output))
}

export async function runReport(
  runs: readonly string[],
  values: { base?: string; baseline?: string; byRun?: boolean; output: string },
): Promise<void> {
  const { writeReport } = await import('../report/page.js')
  await writeReport({ runs, ...values })
  printLine(path.resolve(values.output))
}

interface TheoryValues {
  readonly klCoef: number
  readonly entropyCoef: number
  readonly output?: string
}

export async function runTheory({ output, ...coefficients }: TheoryValues): Promise<void> {
  const { theoryFigure, theoryTable } = await import('../theory/figure.js')
  const problem = { ...figure2, ...coefficients }
  printLine(theoryTable(problem))
  if (output === undefined) return
  writeWhole(output, theoryFigure(problem))
  printLine(`\n${path.resolve(output)}`)
}

export async function runSetup({ force }: { force?: boolean }): Promise<void> {
  const { setup } = await import('../setup/setup.js')
  let progress: Progress | undefined
  await setup({
    force: force ?? false,
    onProgress: ({ part, message, done, total, seconds }) => {
      if (done !== undefined && total !== undefined) {
        progress ??= createProgress({ label: part, total, unit: 'files' })
        progress.update(done)
        return
      }
      const line = `${part}: ${message}${seconds === undefined ? '' : ` (${seconds.toFixed(1)} s)`}`
      if (progress) progress.log(line)
      else printError(line)
    },
  }).finally(() => progress?.stop())
}

interface DoctorValues {
  readonly json?: boolean
  readonly config?: string
  readonly processes?: number
}

export async function runDoctor({ json, config, processes = 1 }: DoctorValues): Promise<void> {
  const { doctor, formatDoctor } = await import('./doctor.js')
  const { formatPlan, isPossible, planConfig } = await import('./plan.js')
  const report = await doctor()
  const transfers = createTransfers()
  let plan: Plan | undefined
  /** Processes that share this machine's memory. */
  let sharing = 1
  let failure: unknown
  try {
    if (config !== undefined) {
      const loaded = loadConfig(config)
      if (loaded.model.device === 'cpu') sharing = processes
      plan = await planConfig(loaded, { onProgress: transfers.onProgress, processes }).catch(error => {
        throw explainPlaces(error, loaded, config)
      })
    }
  } catch (error) {
    // What was found on the machine is told all the same.
    failure = error
  } finally {
    transfers.stop()
  }
  if (json) {
    printLine(JSON.stringify({ ...report, ...plan }, null, 2))
  } else {
    printLine(formatDoctor(report))
    if (plan) printLine(`\n${formatPlan(plan, config!)}`)
  }
  const available = report.memory.available / sharing
  if (!report.ok || !(plan === undefined || isPossible(plan, available))) process.exitCode = 1
  if (failure !== undefined) throw failure
}

/** A model's directory. A model from the hub is fetched, with a progress bar. */
async function fetchModel(model: string): Promise<string> {
  const transfers = createTransfers()
  return resolveModel(model, { onProgress: transfers.onProgress }).finally(transfers.stop)
}

interface BenchValues {
  readonly dtype: string
  readonly rows: readonly number[]
  readonly vocab: number
  readonly rounds: number
  readonly threads: number
  readonly json?: string
  readonly svg?: string
  readonly compare?: readonly string[]
}

export async function runBench({ compare, dtype, vocab, json, svg, ...rest }: BenchValues): Promise<void> {
  const { formatBench, formatComparison, readBench } = await import('../bench/results.js')
  if (compare) {
    const [a, b, ...more] = compare
    if (a === undefined || b === undefined || more.length > 0) {
      throw new RapoError('ERR_RAPO_CONFIG', `--compare takes two files, not ${compare.length}`)
    }
    printLine(formatComparison(readBench(a), readBench(b)))
    return
  }
  for (const file of [json, svg]) if (file !== undefined) checkWritable(file)
  const { measureBench } = await import('../bench/measure.js')
  const dtypes = dtype.split(',') as ('float32' | 'bfloat16')[]
  const report = await measureBench({ ...rest, dtypes, vocabSize: vocab, onLine: printError })
  printLine(formatBench(report))
  if (json) writeWhole(json, `${JSON.stringify(report, null, 2)}\n`)
  if (svg) writeWhole(svg, (await import('../bench/chart.js')).benchChart(report))
}

export async function runInit(dir: string): Promise<void> {
  const { writeProject } = await import('./init.js')
  const names = writeProject(dir)
  const place = path.relative('', dir)
  const rapo = invocation(process, dir)
  const commands = [
    ...(place ? [`cd ${quote(place)}`] : []),
    `${rapo} train --config rapo.yaml --dry-run`,
    `${rapo} train --config rapo.yaml`,
    `${rapo} eval --model runs/rapo`,
  ]
  printLine(`wrote ${names.join(', ')}; to try, train and measure:`)
  printLine(commands.map(command => `  ${command}`).join('\n'))
}

/** How this process was called, for commands that a person can paste; through tsx where that loads a TypeScript verifier. */
export function invocation(
  { argv, execArgv } = process as Pick<NodeJS.Process, 'argv' | 'execArgv'>,
  from = '',
): string {
  const script = argv[1] ?? ''
  const hasTsx = execArgv.some(argument => /(^|[\\/])tsx([\\/]|$)/.test(argument))
  return script.endsWith('.ts') || hasTsx ? `npx tsx ${quote(path.relative(from, script))}` : 'npx rapo'
}

function quote(text: string): string {
  return /^[\w./:@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`
}
