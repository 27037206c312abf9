/** Everything that has to be there, and to fit together, before the first step: checked before anything is written. */
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { writeWhole } from '../base/files.js'
import { truncateJsonLines } from '../base/jsonl.js'
import { type Config, requireField, trainingOptions } from '../config/config.js'
import { stringifyConfig } from '../config/load.js'
import { type Cursor, createCursor } from '../data/cursor.js'
import { readProblems } from '../data/problems.js'
import { type EncodeContext, fitContext, fitModel, templateFor } from '../data/prompts.js'
import { openPolicy } from '../model/engine.js'
import { type HubOptions, resolveModel } from '../model/hub.js'
import type { LoadPolicy, Policy } from '../model/policy.js'
import { stopTokenIdsFor } from '../model/template.js'
import { checkTokenizerFits, loadTokenizer } from '../model/tokenizer.js'
import { loadVerifier } from '../reward/load.js'
import type { Verifier } from '../reward/verifier.js'
import { readLatestCheckpoint, removeStaleCheckpoints } from './checkpoint.js'
import { type Observer, openObserver } from './observe/observe.js'
import { clearRun, createRunDir, lockRun } from './run.js'

export interface OpenOptions {
  /** Go on from the newest checkpoint in config.run.output. */
  readonly resume?: boolean
  /** Replace a run that is there already. */
  readonly overwrite?: boolean
  /** Told of the rows that config.data.dropUnusable leaves out. */
  readonly onUnusable?: (rows: readonly string[]) => void
  /** Bytes of a model or of data that is fetched from the hub. */
  readonly onDownload?: HubOptions['onProgress']
  /** Default: the engine's. */
  readonly loadPolicy?: LoadPolicy
}

export interface OpenRun {
  readonly policy: Policy
  /** Where the tokenizer is: model.dir, or its place in the hub's cache. */
  readonly modelDir: string
  readonly verifier: Verifier
  readonly cursor: Cursor
  readonly context: EncodeContext
  readonly stopTokenIds: readonly number[]
  /** Steps done already. */
  readonly stepsDone: number
  /** β of the next step, which objective.entropyTarget moves. */
  readonly entropyCoef: number
  readonly metricsFile: string
  readonly samplesFile: string
  readonly observer: Observer
  close(): Promise<void>
}

/**
 * Opens a new run, or goes on with one: reads and checks problems, tokenizer and model, takes the run directory, drops
 * what a killed process wrote after its last checkpoint. Throws RapoError; then nothing of an earlier run is touched.
 */
export async function openRun(config: Config, options: OpenOptions = {}): Promise<OpenRun> {
  const { model, run } = config
  requireField('data.train', config.data.train, 'the problem file to train on')
  requireField('run.output', run.output, 'the run directory')
  const verifier = await loadVerifier(config.task.verifier)
  const { onUnusable, onDownload } = options
  const data = { ...config.data, ...(onUnusable && { onUnusable }), ...(onDownload && { onDownload }) }
  const problems = await readProblems(data.train, verifier, data)
  const hub = onDownload ? { onProgress: onDownload } : {}
  const modelDir = await resolveModel(model.dir, hub)
  const referenceDir = model.reference ? await resolveModel(model.reference, hub) : modelDir
  const tokenizer = loadTokenizer(modelDir)
  const template = templateFor(problems, config.data, modelDir)
  const stopTokenIds = stopTokenIdsFor(modelDir, tokenizer, template)
  const encode = { tokenizer, template, maxNewTokens: config.sampling.maxNewTokens }
  const fitting = fitContext(problems, modelDir, encode, data)
  if (!options.loadPolicy && model.device === 'cpu') {
    const { checkMemory, planRun } = await import('./memory.js')
    checkMemory(await planRun(config, { modelDir, referenceDir }, fitting))
  }
  if (!options.resume) createRunDir(run.output, options.overwrite ?? false)
  const from = options.resume ? readLatestCheckpoint(run.output) : undefined
  if (options.resume && !from) {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `${run.output} has no checkpoint to resume from: start it again with --overwrite`,
    )
  }
  const stepsDone = from?.trainer.step ?? 0

  const unlock = lockRun(run.output, 'train')
  let policy: Policy | undefined
  try {
    policy = await openPolicy(
      from?.dir ?? modelDir,
      trainingOptions(config, referenceDir),
      run.threads,
      options.loadPolicy,
    )
    checkTokenizerFits(tokenizer, policy.info, modelDir)
    const context = { ...encode, info: policy.info }
    const usable = fitModel(fitting, context, data).map(({ problem }) => problem)
    const cursor = createCursor(usable, run.seed, from?.trainer.cursor)
    const observer = await openObserver(config, stepsDone)
    if (from) await policy.loadState(from.stateFile)

    if (!from) clearRun(run.output)
    removeStaleCheckpoints(run.output)
    const metricsFile = path.join(run.output, 'metrics.jsonl')
    const samplesFile = path.join(run.output, 'samples.jsonl')
    for (const file of [metricsFile, samplesFile]) truncateJsonLines(file, stepsDone)
    writeWhole(path.join(run.output, 'config.yaml'), stringifyConfig(config))

    const close = async () => {
      observer.close()
      await policy?.dispose()
      unlock()
    }
    const { entropyTarget, entropyCoef: initial } = config.objective
    const entropyCoef = (entropyTarget !== undefined ? from?.trainer.entropyCoef : undefined) ?? initial
    return {
      ...{ policy, modelDir, verifier, cursor, context, stopTokenIds, stepsDone, entropyCoef },
      ...{ metricsFile, samplesFile, observer, close },
    }
  } catch (error) {
    await policy?.dispose()
    unlock()
    throw error
  }
}
