/** `rapo grade`: a verifier's verdicts on answers in a file (docs/files.md). */
import { RapoError } from '../base/errors.js'
import { readInput } from '../base/jsonl.js'
import { hubOptions } from '../data/fields.js'
import { placeOf, type Row, readRows, rowsOfLines } from '../data/rows.js'
import type { HubOptions } from '../model/hub.js'
import { loadVerifier } from '../reward/load.js'
import type { MathOptions } from '../reward/math.js'
import { checkAnswer, judge, type VerifyContext } from '../reward/verifier.js'
import { openOutput } from './output.js'

/** Time to wait for a verdict: the default of task.timeout. */
const TIMEOUT_SECONDS = 600

export interface GradeOptions extends MathOptions {
  /** A verifier's name, or the path of a module. */
  readonly task: string
  /** A file (JSON Lines, .csv or .parquet; here or on the hub); absent: JSON Lines from standard input. */
  readonly input?: string
  /** Output file. Absent: standard output. */
  readonly output?: string
  /** Bytes of a file that is fetched from the hub. */
  readonly onDownload?: HubOptions['onProgress']
  /** If the signal is aborted, the call rejects with its reason. */
  readonly signal?: AbortSignal
}

/**
 * Adds { correct, reason } to each row { completion, reference } or { answer, reference }: a completion as the model
 * writes it, or its final answer alone. Throws RapoError naming the line: where a row is unusable, before any is judged.
 */
export async function gradeLines(options: GradeOptions): Promise<{ correct: number; total: number }> {
  const { task, input, output: wanted, onDownload, signal, ...mathOptions } = options
  const output = openOutput(wanted)
  const verifier = await loadVerifier(task, mathOptions)
  const name = input ?? 'standard input'
  const rows =
    input === undefined
      ? rowsOfLines(readInput(0), name)
      : await readRows(input, hubOptions({ onDownload, signal }))
  if (rows.length === 0) throw new RapoError('ERR_RAPO_DATA', `${name} is empty`)
  for (const row of rows) {
    const { value } = row
    const fault = (why: string) => new RapoError('ERR_RAPO_DATA', `${placeOf(row)} ${why}`)
    const { completion, answer, reference } = value
    if (typeof completion !== 'string' && typeof answer !== 'string') {
      throw fault(`must have completion or answer, a text; it has ${Object.keys(value).join(', ')}`)
    }
    if (reference === undefined) throw fault(`has no reference; it has ${Object.keys(value).join(', ')}`)
    const wrong = checkAnswer(verifier, reference, placeOf(row))
    if (wrong !== undefined) throw fault(`reference: ${wrong}`)
  }
  let correct = 0
  try {
    for (const row of rows) {
      const { value } = row
      const { completion, answer, reference } = value
      const verify =
        typeof completion === 'string' ? verifier.verify : (verifier.verifyAnswer ?? verifier.verify)
      const text = (typeof completion === 'string' ? completion : answer) as string
      const place = placeOf(row)
      signal?.throwIfAborted()
      const patience = { timeout: TIMEOUT_SECONDS, signal }
      const context = contextOf(row)
      const verdict = await judge(() => verify.call(verifier, text, reference, context), place, patience)
      const isCorrect = verdict.reward >= 1
      if (isCorrect) correct++
      output.write([{ ...value, correct: isCorrect, reason: verdict.reason }])
    }
    output.finish()
  } catch (error) {
    throw output.fail(error)
  }
  return { correct, total: rows.length }
}

/** A row of `rapo generate` has the prompt; any other may have one. */
function contextOf(row: Row): VerifyContext {
  const { id, prompt, completion: _, answer: __, reference: ___, ...columns } = row.value
  const name = typeof id === 'string' || typeof id === 'number' ? String(id) : placeOf(row)
  return { id: name, prompt: typeof prompt === 'string' ? prompt : '', columns }
}
