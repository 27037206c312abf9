/**
 * Checkpoints: complete model directories, with everything else that an exact resume needs (docs/files.md). A checkpoint is
 * written under a temporary name and then renamed, so that a kill or a full disk never damages the previous checkpoint.
 */
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { asIoError, makeDirectories, syncTree, writeWhole } from '../base/files.js'
import type { CursorState } from '../data/cursor.js'
import type { Policy } from '../model/policy.js'
import { copyTokenizer } from '../model/tokenizer.js'
import type { Origin } from './origin.js'

/** Content of rapo/trainer.json in a checkpoint. */
export interface TrainerState {
  /** Number of steps done. */
  readonly step: number
  readonly cursor: CursorState
  /** β of the next step; objective.entropyTarget changes β from step to step. */
  readonly entropyCoef?: number
  readonly origin?: Origin
}

export interface Checkpoint {
  /** A model directory; of a run with the section lora, a directory with PEFT's adapter. */
  readonly dir: string
  /** File with the float32 weights and moments, for Policy.loadState. */
  readonly stateFile: string
  /** A model directory with the reference, if the reference has changed (model.refModelSyncSteps). */
  readonly referenceDir?: string
  /** The rollouts of the next step, where they were sampled already: for readAhead. */
  readonly rolloutsFile?: string
  readonly trainer: TrainerState
}

const TEMPORARY = '.tmp'
const stateFileOf = (dir: string) => path.join(dir, 'rapo', 'state.safetensors')
const referenceDirOf = (dir: string) => path.join(dir, 'rapo', 'reference')
const rolloutsFileOf = (dir: string) => path.join(dir, 'rapo', 'rollouts.json')
const trainerFileOf = (dir: string) => path.join(dir, 'rapo', 'trainer.json')

/** What stays when a checkpoint is committed, beside the one that markBest named. */
export interface Retention {
  /** Number of the newest checkpoints that stay. */
  readonly keep: number
  /** Which of them keep masters and moments. Default: all. */
  readonly states?: 'all' | 'last'
}

/**
 * Writes a checkpoint beside the others; only the returned commit() makes it the newest, and removes what `retention` does
 * not keep. Throws ERR_RAPO_IO, with nothing left behind, where it cannot be written.
 *
 * @param modelDir the directory from which the tokenizer is copied
 * @param parts hasMoved: the reference has changed since the run began, so that it is part of the state. baseModel: the
 *   checkpoint holds the policy's adapter alone, for the model of that name. rollouts: the
 *   text of formatAhead
 */
export async function writeCheckpoint(
  runDir: string,
  modelDir: string,
  policy: Pick<Policy, 'save' | 'saveAdapter' | 'saveState' | 'saveReference'>,
  trainer: TrainerState,
  { keep, states = 'all' }: Retention,
  {
    hasMoved = false,
    baseModel,
    rollouts,
  }: {
    readonly hasMoved?: boolean
    readonly baseModel?: string | undefined
    readonly rollouts?: string | undefined
  } = {},
): Promise<{ commit(): void }> {
  const root = path.join(runDir, 'checkpoints')
  const name = nameOf(trainer.step)
  const dir = path.join(root, name)
  const temporary = dir + TEMPORARY
  const guard = async (body: () => void | Promise<void>) => {
    try {
      await body()
    } catch (error) {
      rmSync(temporary, { recursive: true, force: true })
      const previous = latestName(runDir)
      const what = `the checkpoint of step ${trainer.step} could not be written to ${root}`
      const rest = previous ? `; the previous one, ${previous}, is whole` : ''
      const { message, cause } = asIoError(what, error)
      throw new RapoError('ERR_RAPO_IO', message + rest, { cause })
    }
  }
  await guard(async () => {
    rmSync(temporary, { recursive: true, force: true })
    makeDirectories(path.join(temporary, 'rapo'))
    await (baseModel === undefined ? policy.save(temporary) : policy.saveAdapter!(temporary, { baseModel }))
    await policy.saveState(stateFileOf(temporary))
    if (hasMoved) {
      makeDirectories(referenceDirOf(temporary))
      await policy.saveReference!(referenceDirOf(temporary))
    }
    copyTokenizer(modelDir, temporary)
    if (rollouts !== undefined) writeFileSync(rolloutsFileOf(temporary), rollouts)
    writeFileSync(trainerFileOf(temporary), `${JSON.stringify(trainer, null, 2)}\n`)
    syncTree(temporary)
  })
  return {
    commit() {
      // Only a run that was resumed from an earlier step can find this step's directory.
      rmSync(dir, { recursive: true, force: true })
      renameSync(temporary, dir)
      writeWhole(path.join(root, 'latest'), `${name}\n`)
      const older = listCheckpoints(runDir).filter(other => other !== name)
      const best = pointerOf(runDir, 'best')
      for (const [i, old] of older.reverse().entries()) {
        if (i + 1 >= keep && old !== best) rmSync(path.join(root, old), { recursive: true, force: true })
        else if (states === 'last') rmSync(stateFileOf(path.join(root, old)), { force: true })
      }
    },
  }
}

/** The newest checkpoint; undefined if the run has none yet. Throws ERR_RAPO_FORMAT if the newest checkpoint is damaged. */
export const readLatestCheckpoint = (runDir: string) => readCheckpoint(runDir, 'latest')

/** The checkpoint that markBest named last; undefined if there is none. Throws ERR_RAPO_FORMAT if it is damaged. */
export const readBestCheckpoint = (runDir: string) => readCheckpoint(runDir, 'best')

function readCheckpoint(runDir: string, pointer: Pointer): Checkpoint | undefined {
  const name = pointerOf(runDir, pointer)
  if (name === undefined) return undefined
  const dir = path.join(runDir, 'checkpoints', name)
  try {
    const trainer = JSON.parse(readFileSync(trainerFileOf(dir), 'utf8')) as TrainerState
    const { epoch, position, fingerprint } = trainer.cursor ?? {}
    if (![trainer.step, epoch, position].every(isCount) || typeof fingerprint !== 'string')
      throw new Error('step or cursor is missing')
    const { entropyCoef = 0 } = trainer
    if (!(Number.isFinite(entropyCoef) && entropyCoef >= 0)) throw new Error('entropyCoef is no number ≥ 0')
    const [referenceDir, rolloutsFile] = [referenceDirOf(dir), rolloutsFileOf(dir)]
    return {
      ...{ dir, stateFile: stateFileOf(dir), trainer },
      ...(existsSync(referenceDir) && { referenceDir }),
      ...(existsSync(rolloutsFile) && { rolloutsFile }),
    }
  } catch (cause) {
    throw new RapoError('ERR_RAPO_FORMAT', `the checkpoint ${dir} is damaged: ${(cause as Error).message}`, {
      cause,
    })
  }
}

/** The step of the checkpoint that markBest named last, if there is one. */
export function readBest(runDir: string): number | undefined {
  const name = pointerOf(runDir, 'best')
  return name === undefined ? undefined : stepOf(name)
}

/** Names the checkpoint of this step as the best one: retention keeps it. */
export function markBest(runDir: string, step: number): void {
  writeWhole(path.join(runDir, 'checkpoints', 'best'), `${nameOf(step)}\n`)
}

/**
 * Removes the remains of a killed process: unfinished checkpoints, and finished ones that were never committed. Also removes
 * the name of a best checkpoint that does not exist any more.
 */
export function removeStaleCheckpoints(runDir: string): void {
  const root = path.join(runDir, 'checkpoints')
  if (!existsSync(root)) return
  const latest = latestName(runDir)
  for (const name of readdirSync(root)) {
    const isLater = /^step-\d+$/.test(name) && (latest === undefined || stepOf(name) > stepOf(latest))
    if (name.endsWith(TEMPORARY) || isLater) rmSync(path.join(root, name), { recursive: true, force: true })
  }
  const best = pointerOf(runDir, 'best')
  if (best !== undefined && !existsSync(path.join(root, best))) rmSync(path.join(root, 'best'))
}

const isCount = (value: unknown) => Number.isSafeInteger(value) && (value as number) >= 0

const latestName = (runDir: string) => pointerOf(runDir, 'latest')

/** A file beside the checkpoints that names one of them. */
type Pointer = 'latest' | 'best'

/** The name of the checkpoint that a file beside the checkpoints holds. */
function pointerOf(runDir: string, pointer: Pointer): string | undefined {
  const file = path.join(runDir, 'checkpoints', pointer)
  if (!existsSync(file)) return undefined
  const name = readFileSync(file, 'utf8').trim()
  if (/^step-\d+$/.test(name)) return name
  throw new RapoError(
    'ERR_RAPO_FORMAT',
    `${file} holds ${JSON.stringify(name)}, which is no checkpoint's name`,
  )
}

/** The checkpoints, ascending by step. */
function listCheckpoints(runDir: string): string[] {
  return readdirSync(path.join(runDir, 'checkpoints'))
    .filter(name => /^step-\d+$/.test(name))
    .sort((a, b) => stepOf(a) - stepOf(b))
}

const nameOf = (step: number) => `step-${String(step).padStart(6, '0')}`

function stepOf(name: string): number {
  return Number(name.slice('step-'.length))
}
