/** What a run's checkpoints will need of the disk, before anything is written. */
import { existsSync, readdirSync, statSync } from 'node:fs'
import { statfs } from 'node:fs/promises'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { byteSize } from '../base/text.js'
import type { Config } from '../config/config.js'
import type { MemoryPrediction } from '../model/engine.js'

/** All in bytes, but for `count`. */
export interface DiskPlan {
  /** The model of one checkpoint, in model.dtype, or its adapter. */
  readonly weights: number
  /** The state of the optimizer in one checkpoint: masters in float32, and moments. */
  readonly state: number
  /** The reference in one checkpoint; 0 unless the reference moves (model.refModelSyncSteps). */
  readonly reference: number
  /** A whole checkpoint, the sum of these three. */
  readonly checkpoint: number
  /** The largest number of checkpoints that lie there at once, the one that is being written included. */
  readonly count: number
  /** All checkpoints at the worst moment. */
  readonly peak: number
}

/** From the sizes of the memory's parts: weights and moments are saved as they are held. */
export function planDisk(
  { model, lora, optimizer, run, eval: { every } }: Config,
  memory: Pick<MemoryPrediction, 'weights' | 'gradients' | 'reference'>,
): DiskPlan {
  // Of an adapter, which is saved as float32, as much as its gradients. Several processes may share out those of a model.
  const isHalf = model.dtype !== 'float32'
  const float32 = lora.r > 0 ? memory.gradients : memory.weights * (isHalf ? 2 : 1)
  const weights = lora.r > 0 ? float32 : memory.weights
  // Masters are saved beside the moments even where float32 weights are their own masters.
  const state = float32 * (optimizer.stateDtype === 'float32' ? 3 : 2)
  const reference = model.refModelSyncSteps > 0 ? memory.reference : 0
  // Each evaluation that is the best so far is saved, too, and the best one before stays until the next checkpoint.
  const evaluations = run.keepBest ? Math.ceil(run.steps / every) : 0
  const saves = Math.min(run.steps, Math.ceil(run.steps / run.saveEvery) + evaluations)
  const count = Math.min(run.keepCheckpoints + (run.keepBest ? 2 : 1), saves)
  const states = run.saveOptimizer === 'last' ? Math.min(2, count) : count
  return {
    ...{ weights, state, reference, count },
    checkpoint: weights + state + reference,
    peak: count * (weights + reference) + states * state,
  }
}

/** Bytes that this user may still write where the directory is, or will be made; undefined where nothing says so. */
export async function freeDisk(dir: string): Promise<number | undefined> {
  let place = path.resolve(dir)
  while (!existsSync(place)) place = path.dirname(place)
  try {
    const { bavail, bsize, blocks } = await statfs(place)
    // Some network file systems tell nothing of their size.
    return blocks > 0 ? bavail * bsize : undefined
  } catch {
    return undefined
  }
}

/** Bytes of the checkpoints that a run directory holds. */
export function checkpointBytes(runDir: string): number {
  const dir = path.join(runDir, 'checkpoints')
  if (!existsSync(dir)) return 0
  const entries = readdirSync(dir, { recursive: true, withFileTypes: true })
  return entries
    .filter(entry => entry.isFile())
    .reduce((sum, { parentPath, name }) => sum + statSync(path.join(parentPath, name)).size, 0)
}

/**
 * Throws ERR_RAPO_IO, with the parts and what would help, where the plan does not fit.
 * @param free what freeDisk says, and what the run's own earlier checkpoints take
 */
export function checkDisk(plan: DiskPlan, { run }: Config, free: number | undefined): void {
  if (free === undefined || plan.peak <= free) return
  throw new RapoError(
    'ERR_RAPO_IO',
    `the checkpoints need ${byteSize(plan.peak)} of disk, and ${byteSize(free)} are free for them in ${path.resolve(run.output)}\n` +
      `${formatDisk(plan)}\n` +
      'less of it: run.keepCheckpoints 1, run.saveOptimizer last, run.keepBest false, model.dtype bfloat16, optimizer.stateDtype bfloat16, a smaller model; or choose another run.output',
  )
}

/** The plan as lines for people. */
export function formatDisk(plan: DiskPlan): string {
  const { weights, state, reference, checkpoint, count, peak } = plan
  const rows: [string, string][] = [
    ['weights', byteSize(weights)],
    ['masters and moments', byteSize(state)],
    ...(reference > 0 ? [['reference', byteSize(reference)] as [string, string]] : []),
    ['a checkpoint', byteSize(checkpoint)],
    ['checkpoints at once', String(count)],
    ['peak', byteSize(peak)],
  ]
  return rows.map(([label, value]) => `  ${label.padEnd(33)}${value.padStart(9)}`).join('\n')
}

/** The same in one line. */
export function describeDisk({ checkpoint, count, peak }: DiskPlan, free: number | undefined): string {
  const room = free === undefined ? '' : ` of ${byteSize(free)} free`
  return `disk: a checkpoint has ${byteSize(checkpoint)}, at most ${count} at once: ${byteSize(peak)}${room}`
}
