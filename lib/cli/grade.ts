/** `rapo grade`: a verifier's verdicts on answers in a file (docs/files.md). */
import { RapoError } from '../base/errors.js'
import { checkWritable, writeWhole } from '../base/files.js'
import { readInput, toJsonLines } from '../base/jsonl.js'
import { placeOf, readRows, rowsOfLines } from '../data/rows.js'
import type { HubOptions } from '../model/hub.js'
import { loadVerifier } from '../reward/load.js'
import { judge } from '../reward/verifier.js'

export interface GradeOptions {
  /** A verifier's name, or the path of a module. */
  readonly task: string
  /** A file (JSON Lines, .csv or .parquet; here or on the hub); absent: JSON Lines from standard input. */
  readonly input?: string
  /** A file; absent: standard output. */
  readonly output?: string
  /** Bytes of a file that is fetched from the hub. */
  readonly onDownload?: HubOptions['onProgress']
}

/**
 * Adds { correct, reason } to each row { completion, reference } or { answer, reference }: a completion as the model
 * writes it, or its final answer alone. Throws RapoError naming the line; then nothing is written.
 */
export async function gradeLines({
  task,
  input,
  output,
  onDownload,
}: GradeOptions): Promise<{ correct: number; total: number }> {
  if (output !== undefined) checkWritable(output)
  const verifier = await loadVerifier(task)
  const name = input ?? 'standard input'
  const rows = input === undefined ? rowsOfLines(readInput(0), name) : await readRows(input, onDownload)
  if (rows.length === 0) throw new RapoError('ERR_RAPO_DATA', `${name} is empty`)
  const results: object[] = []
  let correct = 0
  for (const row of rows) {
    const { value } = row
    const fault = (why: string) => new RapoError('ERR_RAPO_DATA', `${placeOf(row)} ${why}`)
    const { completion, answer, reference } = value
    if (typeof completion !== 'string' && typeof answer !== 'string') {
      throw fault(`must have completion or answer, a text; it has ${Object.keys(value).join(', ')}`)
    }
    if (reference === undefined) throw fault(`has no reference; it has ${Object.keys(value).join(', ')}`)
    const wrong = verifier.checkAnswer(reference)
    if (wrong !== undefined) throw fault(`reference: ${wrong}`)
    const verify =
      typeof completion === 'string' ? verifier.verify : (verifier.verifyAnswer ?? verifier.verify)
    const text = (completion ?? answer) as string
    const verdict = await judge(() => verify.call(verifier, text, reference), placeOf(row))
    const isCorrect = verdict.reward >= 1
    if (isCorrect) correct++
    results.push({ ...value, correct: isCorrect, reason: verdict.reason })
  }
  const lines = toJsonLines(results)
  if (output === undefined) for (const line of lines) process.stdout.write(line)
  else writeWhole(output, lines)
  return { correct, total: rows.length }
}
