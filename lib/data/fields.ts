/** Which columns of a data file hold the problem, the answer, the id and the difficulty. */
import { RapoError } from '../base/errors.js'
import type { HubOptions } from '../model/hub.js'
import type { Row } from './rows.js'

/** The fields of config.data that describe the rows of a file. */
export interface DataOptions {
  /** What names the files, such as data.train: for messages. */
  readonly field?: string
  /** Column of the problem; a dot in the name leads into a nested object. '' means the usual names (docs/files.md). The next
   * three fields work alike. */
  readonly problemField?: string
  readonly answerField?: string
  readonly idField?: string
  readonly difficultyField?: string
  /** Leaves out rows that cannot be used. Otherwise such a row is an error. */
  readonly dropUnusable?: boolean
  /** Takes every shards-th row, beginning with row `shard` (rows count from 0). */
  readonly shards?: number
  readonly shard?: number
  /** Called with all rows that were left out. */
  readonly onUnusable?: (rows: readonly string[]) => void
  /** Called with the number of bytes so far while a file is fetched from the hub. */
  readonly onDownload?: HubOptions['onProgress'] | undefined
  /** Aborting the signal ends such a download, and the call rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined
}

/** The options that fetching a file needs. */
export function hubOptions({ onDownload, signal }: Pick<DataOptions, 'onDownload' | 'signal'>): HubOptions {
  return { ...(onDownload && { onProgress: onDownload }), signal }
}

export type Part = 'problem' | 'answer' | 'id' | 'difficulty'

/** Column names that public datasets use (docs/files.md). The first name present is taken; a dot leads into a nested object. */
export const usualNames: Readonly<Record<Part, readonly string[]>> = {
  problem: ['prompt', 'problem', 'question', 'query'],
  answer: [
    ...['answer', 'reward_model.ground_truth', 'final_answer', 'expected_answer', 'ground_truth'],
    ...['target', 'solution'],
  ],
  id: ['id'],
  difficulty: ['difficulty'],
}

/** A column, by the name that messages use. */
export interface Column {
  readonly name: string
  valueIn(row: Row['value']): unknown
}

/**
 * The columns to read. Throws ERR_RAPO_DATA if a field of the configuration names a column that no row has, and if no row
 * has a column for the problem or for the answer.
 */
export function chooseColumns(
  rows: readonly Row[],
  file: string,
  options: DataOptions,
): Readonly<Record<Part, Column>> {
  const choose = (part: Part): Column => {
    const option = `${part}Field` as const
    const column = chooseColumn(part, rows, file, options[option])
    const isRequired = part === 'problem' || part === 'answer'
    if (isRequired && !options[option] && rows.every(({ value }) => column.valueIn(value) === undefined)) {
      throw new RapoError(
        'ERR_RAPO_DATA',
        `${file}: no row has a column ${usualNames[part].join(', ')}; it has ${listColumns(rows)}: data.${option} names the column with the ${part}`,
      )
    }
    return column
  }
  return {
    problem: choose('problem'),
    answer: choose('answer'),
    id: choose('id'),
    difficulty: choose('difficulty'),
  }
}

/** The column that is given, else the first usual one that a row has. Throws ERR_RAPO_DATA for a given one that no row has. */
export function chooseColumn(part: Part, rows: readonly Row[], file: string, given?: string): Column {
  const usual = usualNames[part]
  const isThere = (name: string) => rows.some(({ value }) => valueAt(value, name) !== undefined)
  if (given && given !== usual[0] && !isThere(given)) {
    throw new RapoError(
      'ERR_RAPO_DATA',
      `${file} has no field "${given}" (data.${part}Field); it has ${listColumns(rows)}`,
    )
  }
  const likeUsual = () =>
    rows.flatMap(({ value }) => Object.keys(value)).find(candidate => usual.includes(candidate.toLowerCase()))
  const name = given || usual.find(isThere) || likeUsual() || usual[0]!
  return { name, valueIn: row => valueAt(row, name) }
}

function listColumns(rows: readonly Row[]): string {
  return [...new Set(rows.flatMap(({ value }) => Object.keys(value)))].join(', ') || 'no columns'
}

/** The column with exactly this name, or else the nested value that the dots of the name lead to. */
export function valueAt(row: Row['value'], name: string): unknown {
  if (Object.hasOwn(row, name)) return row[name]
  return name.split('.').reduce<unknown>((node, key) => {
    return typeof node === 'object' && node !== null && Object.hasOwn(node, key)
      ? (node as Record<string, unknown>)[key]
      : undefined
  }, row)
}
