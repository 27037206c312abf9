/** Which columns of a data file hold the problem, the answer, the id and the difficulty. */
import { RapoError } from '../base/errors.js'
import type { HubOptions } from '../model/hub.js'
import type { Row } from './rows.js'

/** The fields of config.data that say what a file's rows are. */
export interface DataOptions {
  /** What names the files, such as data.train: for messages. */
  readonly field?: string
  /** Column of the problem; dots lead into nested objects. '' takes the usual names (fields.ts); so do the others. */
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
  readonly onDownload?: HubOptions['onProgress'] | undefined
  /** Aborting ends such a download and rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined
}

/** What is needed of them to fetch a file. */
export function hubOptions({ onDownload, signal }: Pick<DataOptions, 'onDownload' | 'signal'>): HubOptions {
  return { ...(onDownload && { onProgress: onDownload }), signal }
}

export type Part = 'problem' | 'answer' | 'id' | 'difficulty'

/** Names that public datasets use (docs/files.md), the first one present being taken; dots lead into nested objects. */
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
 * The columns to read. Throws ERR_RAPO_DATA for a field of the configuration that names a column no row has, and where
 * no row has a column for the problem or the answer.
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

/** A column of that very name, or else the value that the dots lead to. */
export function valueAt(row: Row['value'], name: string): unknown {
  if (Object.hasOwn(row, name)) return row[name]
  return name.split('.').reduce<unknown>((node, key) => {
    return typeof node === 'object' && node !== null && Object.hasOwn(node, key)
      ? (node as Record<string, unknown>)[key]
      : undefined
  }, row)
}
