/** Rows of a data file, by its extension: JSON Lines, CSV, Parquet. */
import type { AsyncBuffer } from 'hyparquet'
import { RapoError } from '../base/errors.js'
import { type Line, parseJsonLines, readInput } from '../base/jsonl.js'
import { type HubOptions, resolveDataFile } from '../model/hub.js'

export interface Rows {
  /** At least one. */
  readonly rows: readonly Line[]
  /** What a row's number counts. */
  readonly unit: 'line' | 'row'
}

/**
 * The rows of a local file, or of hf://datasets/OWNER/NAME/PATH on the hub (hub.ts). Throws ERR_RAPO_DATA, naming the
 * file, for one that is missing, broken or empty, and ERR_RAPO_IO where the hub cannot be read.
 */
export async function readRows(file: string, onDownload?: HubOptions['onProgress']): Promise<Rows> {
  const place = await resolveDataFile(file, onDownload ? { onProgress: onDownload } : {})
  const { rows, unit } = await read(file, readInput(place))
  if (rows.length === 0) throw new RapoError('ERR_RAPO_DATA', `${file} is empty: it holds no row`)
  return { rows, unit }
}

async function read(file: string, content: Buffer): Promise<Rows> {
  if (/\.csv$/i.test(file)) return { rows: await parseCsv(content, file), unit: 'line' }
  if (/\.parquet$/i.test(file)) return { rows: await parseParquet(content, file), unit: 'row' }
  return { rows: parseJsonLines(content, file), unit: 'line' }
}

/** The first line names the columns; every value is a text. */
async function parseCsv(content: Buffer, file: string): Promise<Line[]> {
  const { parse } = await import('csv-parse/sync')
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(content)
    const records = parse(text, { columns: true, info: true, skip_empty_lines: true }) as unknown as {
      record: Record<string, string>
      info: { lines: number }
    }[]
    return records.map(({ record, info }) => ({ value: record, number: info.lines }))
  } catch (cause) {
    throw new RapoError('ERR_RAPO_DATA', `${file} is no readable CSV file: ${(cause as Error).message}`, {
      cause,
    })
  }
}

async function parseParquet(content: Buffer, file: string): Promise<Line[]> {
  const { parquetReadObjects } = await import('hyparquet')
  const { compressors } = await import('hyparquet-compressors')
  // A copy of its own: a small Buffer is a part of a shared one.
  const bytes = Uint8Array.from(content).buffer
  const source: AsyncBuffer = { byteLength: bytes.byteLength, slice: (start, end) => bytes.slice(start, end) }
  try {
    const rows = await parquetReadObjects({ file: source, compressors })
    return rows.map((row, i) => ({ value: plain(row) as Line['value'], number: i + 1 }))
  } catch (cause) {
    throw new RapoError('ERR_RAPO_DATA', `${file} is no readable Parquet file: ${(cause as Error).message}`, {
      cause,
    })
  }
}

/** 64-bit integers as numbers, as JSON has them. */
function plain(value: unknown): unknown {
  if (typeof value === 'bigint') return Number(value)
  if (Array.isArray(value)) return value.map(plain)
  if (typeof value !== 'object' || value === null || value instanceof Date || ArrayBuffer.isView(value))
    return value
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plain(item)]))
}
