/** Problems from data files, and the order in which training takes them. */
import { RapoError } from '../base/errors.js'
import type { Line } from '../base/jsonl.js'
import type { HubOptions } from '../model/hub.js'
import type { Verifier } from '../reward/verifier.js'

/** One line of a problem file (docs/files.md). */
export interface Problem {
  readonly id: string
  readonly prompt: string
  /** What the task's verifier expects. */
  readonly answer: unknown
  /** Splits the evaluation. */
  readonly difficulty?: string
}

/** The fields of config.data that say what a file's rows are. */
export interface DataOptions {
  /** Column of the problem's text; '': prompt, or problem where there is none. */
  readonly problemField?: string
  readonly answerField?: string
  readonly idField?: string
  readonly difficultyField?: string
  /** Leave out what cannot be used, instead of an error. */
  readonly dropUnusable?: boolean
  /** Take every shards-th row, from row number `shard` (from 0) on. */
  readonly shards?: number
  readonly shard?: number
  /** Told of all rows that are left out. */
  readonly onUnusable?: (rows: readonly string[]) => void
  /** Bytes of a file that is fetched from the hub. */
  readonly onDownload?: HubOptions['onProgress']
}

/**
 * Reads a problem file (JSON Lines, .csv or .parquet; here or on the hub); every answer is checked by the verifier. A row cannot be used
 * whose problem is missing or empty, whose answer the verifier refuses, or whose id or problem an earlier row has.
 * Throws ERR_RAPO_DATA for such rows unless they are to be dropped, for a file that is missing, broken or empty, and
 * for a field that no row has: the message names file, row and why.
 */
export async function readProblems(
  file: string,
  verifier: Pick<Verifier, 'checkAnswer'>,
  options: DataOptions = {},
): Promise<Problem[]> {
  const { readRows } = await import('./rows.js')
  const { rows, unit } = await readRows(file, options.onDownload)
  const fields = chooseFields(rows, file, options)
  const firstWith = { id: new Map<string, number>(), prompt: new Map<string, number>() }
  const problems: Problem[] = []
  const unusable: string[] = []
  for (const { value, number } of rows) {
    const problem = parseProblem(value, number, fields)
    const earlier = (what: 'id' | 'prompt') =>
      typeof problem !== 'string' && firstWith[what].get(problem[what])
    let fault: string | undefined
    if (typeof problem === 'string') fault = problem
    else if (earlier('id')) fault = `has the id "${problem.id}" that ${unit} ${earlier('id')} has already`
    else if (earlier('prompt')) fault = `has the problem that ${unit} ${earlier('prompt')} has already`
    else fault = verifier.checkAnswer(problem.answer)
    if (typeof problem === 'string' || fault !== undefined) {
      unusable.push(`${placeOf(file, unit, number)} ${fault}`)
      continue
    }
    firstWith.id.set(problem.id, number)
    firstWith.prompt.set(problem.prompt, number)
    problems.push(problem)
  }
  settleUnusable(unusable, rows.length, options)
  if (problems.length === 0) throw new RapoError('ERR_RAPO_DATA', `${file} holds no problem that can be used`)
  const { shards = 1, shard = 0 } = options
  const own = problems.filter((_, i) => i % shards === shard)
  if (own.length === 0) {
    throw new RapoError(
      'ERR_RAPO_DATA',
      `${file} has ${problems.length} problems: shard ${shard} of ${shards} is empty`,
    )
  }
  return own
}

/** A row, as messages name it. */
export function placeOf(file: string, unit: 'line' | 'row', number: number): string {
  return unit === 'line' ? `${file}:${number}: line ${number}` : `${file}: row ${number}`
}

/** How many are spelled out in an error. */
const SHOWN = 20

/** Drops rows that cannot be used, telling of them, or throws ERR_RAPO_DATA with the list. */
export function settleUnusable(
  unusable: readonly string[],
  count: number,
  { dropUnusable = false, onUnusable }: DataOptions,
): void {
  if (unusable.length === 0) return
  if (dropUnusable) {
    onUnusable?.(unusable)
    return
  }
  const more = unusable.length > SHOWN ? [`… and ${unusable.length - SHOWN} more`] : []
  const hint = `${unusable.length} of ${count} cannot be used; data.dropUnusable: true leaves them out`
  throw new RapoError('ERR_RAPO_DATA', [...unusable.slice(0, SHOWN), ...more, hint].join('\n'))
}

interface Fields {
  readonly prompt: string
  readonly answer: string
  readonly id: string
  readonly difficulty: string
}

/** Throws ERR_RAPO_DATA for a named field that no row has. */
function chooseFields(rows: readonly Line[], file: string, options: DataOptions): Fields {
  const names = new Set(rows.flatMap(({ value }) => Object.keys(value)))
  const choose = (option: 'problemField' | 'answerField' | 'idField' | 'difficultyField', usual: string) => {
    const name = options[option] || usual
    if (!options[option] || name === usual || names.has(name)) return name
    throw new RapoError(
      'ERR_RAPO_DATA',
      `${file} has no field "${name}" (data.${option}); it has ${[...names].join(', ')}`,
    )
  }
  return {
    prompt: choose('problemField', names.has('prompt') || !names.has('problem') ? 'prompt' : 'problem'),
    answer: choose('answerField', 'answer'),
    id: choose('idField', 'id'),
    difficulty: choose('difficultyField', 'difficulty'),
  }
}

/** The problem, or why the row is none. */
function parseProblem(value: Line['value'], number: number, fields: Fields): Problem | string {
  const { [fields.prompt]: prompt, [fields.answer]: answer } = value
  const id = value[fields.id] ?? number
  const difficulty = value[fields.difficulty] ?? undefined
  if (typeof id !== 'string' && typeof id !== 'number') return `${fields.id} must be a text or a number`
  if (typeof prompt !== 'string' || prompt === '') return `${fields.prompt} must be a text that is not empty`
  if (answer === undefined || answer === null) return `${fields.answer} is missing`
  if (difficulty !== undefined && (!['string', 'number'].includes(typeof difficulty) || difficulty === '')) {
    return `${fields.difficulty} must be a text or a number`
  }
  if (difficulty === 'all') return `${fields.difficulty} "all" is the name of the whole set; choose another`
  return {
    id: String(id),
    prompt,
    answer,
    ...(difficulty === undefined ? {} : { difficulty: String(difficulty) }),
  }
}
