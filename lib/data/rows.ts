/** Rows of data files, by their extensions: JSON Lines, JSON arrays, CSV, TSV and Parquet, compressed or not. */
import { existsSync } from 'node:fs'
import { gunzipSync } from 'node:zlib'
import * as lossless from 'lossless-json'
import { RapoError } from '../base/errors.js'
import { withPlace } from '../base/files.js'
import { type Line, type ParseOptions, parseJsonLines, readInput } from '../base/jsonl.js'
import { type HubOptions, resolveDataFile } from '../model/hub.js'

export interface Row extends Line {
  /** The file, as the user named it. */
  readonly file: string
  /** What `number` counts: lines or rows. */
  readonly unit: 'line' | 'row'
}

type KeepBad = Pick<ParseOptions, 'keepsBad'>

export interface ReadOptions extends HubOptions, KeepBad {
  /** What names the files, such as data.train: for messages. */
  readonly field?: string | undefined
}

/** A row, as messages name it: `a.jsonl:4`, or `a.parquet row 4`. */
export function placeOf({ file, unit, number }: Omit<Row, 'value'>): string {
  return unit === 'line' ? `${file}:${number}` : `${file} row ${number}`
}

/** The files that a field of the configuration names, for messages. */
export function nameOf(files: string | readonly string[]): string {
  return typeof files === 'string' ? files : files.join(', ')
}

/**
 * The rows of one or several files, one after another. A name is a local file, a glob such as data/train-*.parquet, whose
 * files are read in the order of their names, or hf://datasets/OWNER/NAME/PATH on the hub. Extensions: .jsonl (also the
 * default), .json (an array, or lines), .csv, .tsv, .parquet, each but the last also with .gz or .zst. Throws
 * ERR_RAPO_DATA, naming the file, for one that is missing, broken or empty, and ERR_RAPO_IO where the hub cannot be read.
 */
export async function readRows(files: string | readonly string[], options: ReadOptions = {}): Promise<Row[]> {
  const { field, keepsBad, ...hub } = options
  const rows: Row[] = []
  for (const name of [files].flat()) {
    for (const file of await expand(name, field)) {
      const place = await resolveDataFile(file, hub)
      const found = await read(file, Buffer.from(readInput(place, field)), { keepsBad })
      if (found.length === 0) throw new RapoError('ERR_RAPO_DATA', `${file} is empty: it holds no row`)
      for (const row of found) rows.push(row)
    }
  }
  return rows
}

/** The rows of JSON Lines that do not come from a file, such as those of standard input. */
export function rowsOfLines(content: Uint8Array, file: string, options: KeepBad = {}): Row[] {
  const lines = parseJsonLines(content, file, { ...options, parse: parseJson })
  return lines.map(line => ({ ...line, file, unit: 'line' }))
}

async function expand(name: string, field?: string): Promise<readonly string[]> {
  if (name.startsWith('hf://') || !/[*?{[]/.test(name) || existsSync(name)) return [name]
  const { globSync } = await import('tinyglobby')
  const files = globSync(name, { expandDirectories: false, dot: true }).sort()
  if (files.length === 0) {
    const said = `no file matches ${withPlace(name)}`
    throw new RapoError('ERR_RAPO_DATA', field ? `${field}: ${said}` : said)
  }
  return files
}

async function read(file: string, content: Buffer, options: KeepBad): Promise<Row[]> {
  const [, base = file, compression] = /^(.*)\.(gz|zst)$/i.exec(file) ?? []
  const bytes = compression ? await decompress(content, file, compression.toLowerCase()) : content
  const numbered = (values: readonly unknown[]) =>
    values.map((value, i) => ({ value: value as Line['value'], number: i + 1, file, unit: 'row' as const }))
  if (/\.[ct]sv$/i.test(base)) return parseTable(bytes, file, /\.csv$/i.test(base) ? ',' : '\t')
  if (/\.parquet$/i.test(base)) {
    const { readParquet } = await import('./parquet.js')
    return numbered(await readable(file, 'Parquet file', () => readParquet(bytes)))
  }
  if (/\.json$/i.test(base) && /^\s*\[/.test(bytes.toString('utf8', 0, 1000).replace(/^\ufeff/, ''))) {
    return numbered(await readable(file, 'JSON array of objects', () => parseArray(bytes)))
  }
  return rowsOfLines(bytes, file, options)
}

async function decompress(content: Buffer, file: string, compression: string): Promise<Buffer> {
  if (compression === 'gz') return readable(file, 'gzip file', () => gunzipSync(content))
  const { decompress } = await import('fzstd')
  return readable(file, 'Zstandard file', () => Buffer.from(decompress(content)))
}

async function readable<T>(file: string, what: string, body: () => T | Promise<T>): Promise<T> {
  try {
    return await body()
  } catch (cause) {
    throw new RapoError('ERR_RAPO_DATA', `${file} is no readable ${what}: ${(cause as Error).message}`, {
      cause,
    })
  }
}

const textOf = (bytes: Uint8Array) => new TextDecoder('utf-8', { fatal: true }).decode(bytes)

function parseArray(bytes: Uint8Array): unknown[] {
  const values = parseJson(textOf(bytes)) as unknown[]
  const other = values.findIndex(value => typeof value !== 'object' || value === null || Array.isArray(value))
  if (other >= 0) throw new Error(`entry ${other + 1} is not an object`)
  return values
}

/** The first line holds the names of the columns. Every value is a text. */
async function parseTable(content: Buffer, file: string, delimiter: string): Promise<Row[]> {
  const { parse } = await import('csv-parse/sync')
  return readable(file, delimiter === ',' ? 'CSV file' : 'TSV file', () => {
    const records = parse(textOf(content), {
      delimiter,
      columns: checkColumns,
      info: true,
      skip_empty_lines: true,
    }) as unknown as { record: Record<string, string>; info: { lines: number } }[]
    return records.map(({ record, info }) => ({ value: record, number: info.lines, file, unit: 'line' }))
  })
}

function checkColumns(names: string[]): string[] {
  const double = names.find((name, i) => names.indexOf(name) < i)
  if (double !== undefined) throw new Error(`two columns are named "${double}"`)
  return names
}

/** Matches numbers that JSON.parse might round: those with many digits or a large exponent. */
const MAY_ROUND = /\d[\d.]{15}|\d[eE][+-]?\d{3}/

/** Like JSON.parse, but a number that a double would round stays a text. */
function parseJson(text: string): unknown {
  const value: unknown = JSON.parse(text)
  return MAY_ROUND.test(text) ? lossless.parse(text, undefined, keepDigits) : value
}

function keepDigits(text: string): number | string {
  return lossless.isSafeNumber(text) ? Number(text) : text
}
