/** `rapo grade`: a verifier's verdicts on answers in a file (docs/files.md). */
import { RapoError } from '../base/errors.js'
import { readStandardInput } from '../base/jsonl.js'
import { hubOptions, usualNames, valueAt } from '../data/fields.js'
import { lastUserText, messagesFault, toMessage } from '../data/problems.js'
import { placeOf, type Row, readRows, rowsOfLines } from '../data/rows.js'
import type { HubOptions } from '../model/hub.js'
import type { FinishReason } from '../model/policy.js'
import { loadVerifier } from '../reward/load.js'
import type { MathOptions } from '../reward/math.js'
import { checkAnswer, judge, type Verdict, type Verifier, type VerifyContext } from '../reward/verifier.js'
import { openOutput } from './output.js'

/** Time to wait for a verdict: the default of task.timeout. */
const TIMEOUT_SECONDS = 600

export interface GradeOptions extends MathOptions {
  /** A verifier's name, or the path of a module. */
  readonly task: string
  /** A problem file's formats; here or on the hub. Absent: JSON Lines from standard input. */
  readonly input?: string
  /** Output file. Absent: standard output. */
  readonly output?: string
  /** Column of the completion, or of a list of completions. Default: completion, else completions. */
  readonly completionField?: string
  /** Column of the final answer that is judged alone. Default, in rows without a completion: answer. */
  readonly answerField?: string
  /** Column of the right answer. Default: reference; in rows with a completion else the usual names of problem files. */
  readonly referenceField?: string
  /** Bytes of a file that is fetched from the hub. */
  readonly onDownload?: HubOptions['onProgress']
  /** If the signal is aborted, the call rejects with its reason. */
  readonly signal?: AbortSignal
}

export interface Graded {
  readonly correct: number
  /** Completions and answers judged. */
  readonly total: number
  /** Place and fault of each row that could not be judged. */
  readonly unusable: readonly string[]
}

/**
 * Adds { correct, reason } to each row { completion, reference } or { answer, reference }: a completion as the model
 * writes it, or its final answer alone. The rows of `rapo generate`, { completions: [{ text }] }, get them in each entry.
 * A row that cannot be judged gets correct null and the reason why. Throws RapoError, naming the row, where the verifier
 * itself fails.
 */
export async function gradeLines(options: GradeOptions): Promise<Graded> {
  const { task, input, output: wanted, onDownload, signal, extract, tolerance, ...fields } = options
  if (fields.completionField && fields.answerField) {
    throw new RapoError('ERR_RAPO_CONFIG', '--completion-field and --answer-field exclude each other')
  }
  const output = openOutput(wanted)
  const verifier = await loadVerifier(task, { extract, tolerance })
  const name = input ?? 'standard input'
  const rows =
    input === undefined
      ? rowsOfLines(await readStandardInput(signal), name, { keepsBad: true })
      : await readRows(input, { ...hubOptions({ onDownload, signal }), field: '--input', keepsBad: true })
  if (rows.length === 0) throw new RapoError('ERR_RAPO_DATA', `${name} is empty`)
  checkFields(rows, name, fields)
  const counts = { correct: 0, total: 0 }
  const unusable: string[] = []
  try {
    for (const row of rows) {
      const asked = row.fault ?? readRow(row, fields, verifier)
      if (typeof asked === 'string') {
        unusable.push(`${placeOf(row)}: ${asked}`)
        output.write([{ ...row.value, correct: null, reason: asked }])
        continue
      }
      const judged: Judged[] = []
      for (const answer of asked.answers) {
        signal?.throwIfAborted()
        const context = { ...asked.context, ...answer.sampled }
        const verify = () => asked.verify.call(verifier, answer.text, asked.reference, context)
        judged.push(toJudged(await judge(verify, placeOf(row), { timeout: TIMEOUT_SECONDS, signal })))
      }
      counts.total += judged.length
      counts.correct += judged.filter(({ correct }) => correct).length
      output.write([{ ...row.value, ...asked.results(judged) }])
    }
    output.finish()
  } catch (error) {
    throw output.fail(error)
  }
  return { ...counts, unusable }
}

interface Judged {
  readonly correct: boolean
  readonly reason: string
}

const toJudged = ({ reward, reason }: Verdict): Judged => ({ correct: reward >= 1, reason })

type Fields = Pick<GradeOptions, 'completionField' | 'answerField' | 'referenceField'>

/** A field that no row has is a mistake of the command line rather than of the rows. */
function checkFields(rows: readonly Row[], name: string, fields: Fields): void {
  const options = { completionField: '--completion-field', answerField: '--answer-field' }
  for (const [field, option] of Object.entries({ ...options, referenceField: '--reference-field' })) {
    const given = fields[field as keyof Fields]
    if (!given || rows.some(({ value }) => valueAt(value, given) !== undefined)) continue
    const names = [...new Set(rows.flatMap(({ value }) => Object.keys(value)))]
    throw new RapoError(
      'ERR_RAPO_DATA',
      `${name} has no field "${given}" (${option}); it has ${names.join(', ')}`,
    )
  }
}

/** What a row asks of the verifier. */
interface Asked {
  readonly answers: readonly { readonly text: string; readonly sampled: Partial<VerifyContext> }[]
  readonly verify: Verifier['verify']
  readonly reference: unknown
  readonly context: VerifyContext
  /** The fields that the verdicts change or add. */
  results(judged: readonly Judged[]): object
}

/** Or why the row cannot be judged. */
function readRow(row: Row, fields: Fields, verifier: Verifier): Asked | string {
  const { value } = row
  const has = `it has ${Object.keys(value).join(', ') || 'no fields'}`
  const isThere = (name: string) => (valueAt(value, name) ?? undefined) !== undefined
  const completionField =
    fields.completionField ?? (fields.answerField ? undefined : ['completion', 'completions'].find(isThere))
  const judgedField = completionField ?? fields.answerField ?? 'answer'
  const judged = readJudged(judgedField, valueAt(value, judgedField))
  if (typeof judged === 'string') {
    const isGiven = fields.completionField ?? fields.answerField ?? completionField
    return isGiven ? `${judged}; ${has}` : `must have completion, completions or answer, a text; ${has}`
  }
  const usual = ['reference', ...(completionField ? usualNames.answer : [])].filter(
    name => name !== judgedField,
  )
  const referenceField = fields.referenceField ?? usual.find(isThere)
  const reference = referenceField === undefined ? undefined : valueAt(value, referenceField)
  if (reference === undefined) return `has no ${fields.referenceField ?? 'reference'}; ${has}`
  const wrong = checkAnswer(verifier, reference, placeOf(row))
  if (wrong !== undefined) return referenceField === 'answer' ? wrong : `${referenceField}: ${wrong}`
  return {
    ...judged,
    reference,
    verify: completionField ? verifier.verify : (verifier.verifyAnswer ?? verifier.verify),
    context: contextOf(row, [judgedField, referenceField!]),
  }
}

/** A text, or a list of texts or of objects with a text; or why it is neither. */
function readJudged(name: string, value: unknown): Pick<Asked, 'answers' | 'results'> | string {
  if (typeof value === 'string') {
    return { answers: [{ text: value, sampled: {} }], results: ([judged]) => ({ ...judged }) }
  }
  const entries = (Array.isArray(value) ? value : []).map(entry =>
    typeof entry === 'string' ? { text: entry } : (entry as Partial<Generated> | null),
  )
  const isText = (entry: Partial<Generated> | null) => typeof entry?.text === 'string'
  if (entries.length === 0 || !entries.every(isText)) return `${name} must be a text, or a list of texts`
  const answers = (entries as Generated[]).map(({ text, tokenIds, finishReason }) => ({
    text,
    sampled: {
      ...(Array.isArray(tokenIds) && { tokens: tokenIds.length }),
      ...(finishReason && { finishReason }),
    },
  }))
  const results = (judged: readonly Judged[]) => ({
    [name]: entries.map((entry, i) => ({ ...entry, ...judged[i] })),
  })
  return { answers, results }
}

/** An entry of `completions` as `rapo generate` writes it. */
interface Generated {
  readonly text: string
  readonly tokenIds?: readonly number[]
  readonly finishReason?: FinishReason
}

/** A row of `rapo generate` has the prompt; any other may have one. */
function contextOf(row: Row, judged: readonly string[]): VerifyContext {
  const { id, prompt, ...columns } = row.value
  const name = typeof id === 'string' || typeof id === 'number' ? String(id) : placeOf(row)
  const others = Object.entries(columns).filter(([name]) => !judged.includes(name))
  const isChat = Array.isArray(prompt) && messagesFault(prompt) === undefined
  return {
    id: name,
    ...(isChat
      ? { prompt: lastUserText(prompt), messages: prompt.map(toMessage) }
      : { prompt: typeof prompt === 'string' ? prompt : '' }),
    columns: Object.fromEntries(others),
  }
}
