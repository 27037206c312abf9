/** Which columns of a data file hold the problem, the answer, the id and the difficulty. */
import { RapoError } from '../base/errors.js'
import type { HubOptions } from '../model/hub.js'
import type { Row } from './rows.js'

/** The fields of config.data that describe the rows of a file. */
export interface DataOptions {
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

type Part = 'problem' | 'answer' | 'id' | 'difficulty'

/** Column names that public datasets use (docs/files.md). The first name present is taken; a dot leads into a nested object. */
const usualNames: Readonly<Record<Part, readonly string[]>> = {
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
  const names = new Set(rows.flatMap(({ value }) => Object.keys(value)))
  const isThere = (name: string) => rows.some(({ value }) => valueAt(value, name) !== undefined)
  const choose = (part: Part): Column => {
    const option = `${part}Field` as const
    const usual = usualNames[part]
    const given = options[option]
    if (given && given !== usual[0] && !isThere(given)) {
      throw new RapoError(
        'ERR_RAPO_DATA',
        `${file} has no field "${given}" (data.${option}); it has ${[...names].join(', ')}`,
      )
    }
    const name =
      given ||
      usual.find(isThere) ||
      [...names].find(candidate => usual.includes(candidate.toLowerCase())) ||
      usual[0]!
    if (!given && (part === 'problem' || part === 'answer') && !isThere(name)) {
      throw new RapoError(
        'ERR_RAPO_DATA',
        `${file}: no row has a column ${usual.join(', ')}; it has ${[...names].join(', ') || 'no columns'}: data.${option} names the column with the ${part}`,
      )
    }
    return { name, valueIn: row => valueAt(row, name) }
  }
  return {
    problem: choose('problem'),
    answer: choose('answer'),
    id: choose('id'),
    difficulty: choose('difficulty'),
  }
}

/** The column with exactly this name, or else the nested value that the dots of the name lead to. */
function valueAt(row: Row['value'], name: string): unknown {
  if (Object.hasOwn(row, name)) return row[name]
  return name.split('.').reduce<unknown>((node, key) => {
    return typeof node === 'object' && node !== null && Object.hasOwn(node, key)
      ? (node as Record<string, unknown>)[key]
      : undefined
  }, row)
}
