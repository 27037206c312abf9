/** `rapo grade`: a verifier's verdicts on answers in a file (docs/files.md). */
import { parseJsonLines, placeOf, readInput } from './data.js'
import { RapoError } from './errors.js'
import type { HubOptions } from './hub.js'
import { loadVerifier, type Verdict } from './reward/verifier.js'
import { readRows } from './rows.js'
import { writeWhole } from './run.js'

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
  const verifier = await loadVerifier(task)
  const name = input ?? 'standard input'
  const { rows, unit } =
    input === undefined
      ? { rows: parseJsonLines(readInput(0), name), unit: 'line' as const }
      : await readRows(input, onDownload)
  if (rows.length === 0) throw new RapoError('ERR_RAPO_DATA', `${name} is empty`)
  const results: object[] = []
  let correct = 0
  for (const { value, number } of rows) {
    const fault = (why: string) => new RapoError('ERR_RAPO_DATA', `${name}:${number}: line ${number} ${why}`)
    const { completion, answer, reference } = value
    if (typeof completion !== 'string' && typeof answer !== 'string') {
      throw fault(`must have completion or answer, a text; it has ${Object.keys(value).join(', ')}`)
    }
    if (reference === undefined) throw fault(`has no reference; it has ${Object.keys(value).join(', ')}`)
    const wrong = verifier.checkAnswer(reference)
    if (wrong !== undefined) throw fault(`reference: ${wrong}`)
    const verify =
      typeof completion === 'string' ? verifier.verify : (verifier.verifyAnswer ?? verifier.verify)
    let verdict: Verdict
    try {
      verdict = await verify.call(verifier, (completion ?? answer) as string, reference)
    } catch (cause) {
      throw new RapoError(
        'ERR_RAPO_INTERNAL',
        `${placeOf(name, unit, number)}: the verifier failed: ${(cause as Error).message}`,
        {
          cause,
        },
      )
    }
    const isCorrect = verdict.reward >= 1
    if (isCorrect) correct++
    results.push({ ...value, correct: isCorrect, reason: verdict.reason })
  }
  const text = results.map(result => `${JSON.stringify(result)}\n`).join('')
  if (output === undefined) process.stdout.write(text)
  else writeWhole(output, text)
  return { correct, total: rows.length }
}
