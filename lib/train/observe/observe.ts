/** Sends a run's metrics to the places that the section `observe` of the configuration names (docs/observe.md). */
import path from 'node:path'
import { RapoError } from '../../base/errors.js'
import { checkWritable } from '../../base/files.js'
import { importModule } from '../../base/module.js'
import { reasonAndPlace } from '../../base/thrown.js'
import { answerOf } from '../../base/wait.js'
import type { Config } from '../../config/config.js'
import { type StepEvaluation, scoresByName } from '../evaluation.js'
import type { StepMetrics } from '../metrics.js'
import { writePrometheus } from './prometheus.js'
import { openTensorBoard } from './tensorboard.js'

/**
 * The default export of the module that observe.hook names. It is awaited after every step. If it throws, the state after that
 * step is saved and the run ends.
 */
export type Hook = (
  metrics: StepMetrics,
  run: {
    readonly config: Config
    /** The evaluation (eval.every) after this step, or after an earlier one that no call has told of. */
    readonly evaluation?: StepEvaluation
  },
) => void | Promise<void>

export interface Observer {
  /** Called when a step's lines are on disk. A file that cannot be written causes one warning. Aborting ends the wait for the hook. */
  step(metrics: StepMetrics, signal?: AbortSignal): Promise<void>
  /** Called when an evaluation's lines are on disk, before step is called with its step. */
  evaluated(evaluation: StepEvaluation): void
  close(): void
}

/** Checks what `observe` names, before anything takes long, and loads the hook. Throws ERR_RAPO_CONFIG and ERR_RAPO_IO. */
export async function loadHook({ observe }: Config): Promise<Hook | undefined> {
  if (observe.prometheus) checkWritable(observe.prometheus)
  if (!observe.hook) return undefined
  const { default: hook } = await importModule('observe.hook', observe.hook)
  if (typeof hook === 'function') return hook as Hook
  throw new RapoError(
    'ERR_RAPO_CONFIG',
    `observe.hook ${observe.hook}: its default export must be a function`,
  )
}

/**
 * Prepares everything that `observe` asks for. Files are opened after the first step, so that nothing is written before a
 * step is done.
 * @param hook what loadHook loaded
 * @param stepsDone the number of steps of a resumed run
 * @param notify told of files that cannot be written, which does not end the run
 */
export function openObserver(
  config: Config,
  hook: Hook | undefined,
  stepsDone: number,
  notify: (text: string) => void,
): Observer {
  const { observe, run } = config
  const { output } = run
  let board: ReturnType<typeof openTensorBoard> | undefined
  const writers: { write: (metrics: StepMetrics) => void; isWarned?: boolean }[] = []
  let newest: StepEvaluation | undefined
  let untold: StepEvaluation | undefined
  if (observe.tensorboard) {
    writers.push({
      write(metrics) {
        board ??= openTensorBoard(path.join(output, 'tensorboard'), stepsDone)
        board.add(metrics.step, flatten(metrics, '/'))
        if (untold) board.add(untold.step, flatten({ eval: scoresByName(untold) }, '/'))
      },
    })
  }
  if (observe.prometheus) {
    writers.push({
      write: metrics =>
        writePrometheus(
          observe.prometheus,
          { ...metrics, ...(newest && { eval: scoresByName(newest) }) },
          { run: output },
        ),
    })
  }
  return {
    evaluated(evaluation) {
      newest = evaluation
      untold = evaluation
    },
    async step(metrics, signal) {
      for (const writer of writers) {
        try {
          writer.write(metrics)
        } catch (error) {
          // A failure to write curves does not end a run.
          if (!writer.isWarned) notify(`${(error as Error).message}; the run goes on without`)
          writer.isWarned = true
        }
      }
      const told = { config, ...(untold && { evaluation: untold }) }
      untold = undefined
      await callHook(hook, metrics, told, signal)
    },
    close: () => board?.close(),
  }
}

async function callHook(
  hook: Hook | undefined,
  metrics: StepMetrics,
  run: Parameters<Hook>[1],
  signal?: AbortSignal,
): Promise<void> {
  try {
    await answerOf(hook?.(metrics, run), { signal })
  } catch (cause) {
    if (signal?.aborted && cause === signal.reason) throw cause
    const why = reasonAndPlace(cause)
    const message = `observe.hook ${run.config.observe.hook} failed on step ${metrics.step}: ${why}`
    throw new RapoError('ERR_RAPO_INTERNAL', message, { cause })
  }
}

/** { kl: 1, seconds: { train: 2 } } → [['kl', 1], ['seconds/train', 2]]; the step and values that are not numbers are left out. */
export function flatten(metrics: object, separator: string): [name: string, value: number][] {
  return Object.entries(metrics).flatMap(([name, value]): [string, number][] => {
    if (typeof value === 'number') return name === 'step' ? [] : [[name, value]]
    if (typeof value !== 'object' || value === null) return []
    return flatten(value, separator).map(([inner, number]) => [`${name}${separator}${inner}`, number])
  })
}
