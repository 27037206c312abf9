import { appendFileSync, existsSync, readFileSync } from 'node:fs'
import { addAbortSignal } from 'node:stream'
import { RapoError, reasonOf } from './errors.js'
import { ioGuard, ioReason, withPlace, writeWhole } from './files.js'
import { isLfsPointer, lfsMessage } from './lfs.js'

/** The one reader and the one writer of JSON Lines. */
export interface Line {
  readonly value: Readonly<Record<string, unknown>>
  /** From 1. */
  readonly number: number
  /** The reason why the line holds no object, if such lines are kept. `value` is then empty. */
  readonly fault?: string
}

export interface ParseOptions {
  /** Default: JSON.parse. */
  readonly parse?: (text: string) => unknown
  /** A line that holds no object gets `fault`, and is no error. */
  readonly keepsBad?: boolean | undefined
}

/** The lines of a JSON Lines text, each an object; blank lines are skipped. Throws ERR_RAPO_DATA naming file, line, why. */
export function parseJsonLines(
  content: Uint8Array,
  file: string,
  { parse = JSON.parse, keepsBad = false }: ParseOptions = {},
): Line[] {
  const lines: Line[] = []
  let start = 0
  for (let number = 1; start < content.length; number++) {
    const newline = content.indexOf(0x0a, start)
    const end = newline < 0 ? content.length : newline
    const bytes = content.subarray(start, end)
    start = end + 1
    const line = parseLine(bytes, parse)
    if (line === undefined) continue
    if (typeof line !== 'string') lines.push({ value: line, number })
    else if (keepsBad) lines.push({ value: {}, number, fault: line })
    else throw new RapoError('ERR_RAPO_DATA', `${file}:${number}: ${line}`)
  }
  return lines
}

/** The object of a line; undefined for a blank line; the reason as a text if the line holds no object. */
function parseLine(bytes: Uint8Array, parse: (text: string) => unknown): Line['value'] | string | undefined {
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch {
    return 'the line is not UTF-8 text'
  }
  if (text.trim() === '') return undefined
  let value: unknown
  try {
    value = parse(text)
  } catch (error) {
    return `the line is not JSON: ${(error as Error).message}`
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Line['value']
  return `the line must be a JSON object, not ${shorten(text)}`
}

/**
 * A file's bytes. Throws ERR_RAPO_DATA with the reason if the file cannot be read.
 * @param field the configuration's field that names the file, such as data.train, for messages
 */
export function readInput(file: string, field?: string): Uint8Array {
  try {
    const content = readFileSync(file)
    if (isLfsPointer(content)) throw new RapoError('ERR_RAPO_DATA', lfsMessage(file))
    return content
  } catch (cause) {
    if (cause instanceof RapoError) throw cause
    const isMissing = (cause as NodeJS.ErrnoException).code === 'ENOENT'
    const why = isMissing
      ? `there is no file ${withPlace(file)}`
      : `cannot read ${file}: ${ioReason(cause, file)}`
    throw new RapoError('ERR_RAPO_DATA', field ? `${field}: ${why}` : why, { cause })
  }
}

/**
 * Standard input to its end, not by readFileSync, which a signal cannot end. Throws ERR_RAPO_DATA; an abort rejects with the
 * signal's reason.
 */
export async function readStandardInput(signal?: AbortSignal): Promise<Uint8Array> {
  const parts: Buffer[] = []
  try {
    const { stdin } = process
    for await (const part of signal ? addAbortSignal(signal, stdin) : stdin) parts.push(part)
  } catch (cause) {
    signal?.throwIfAborted()
    throw new RapoError('ERR_RAPO_DATA', `cannot read standard input: ${reasonOf(cause)}`, { cause })
  }
  return Buffer.concat(parts)
}

function shorten(text: string): string {
  return text.length > 40 ? `${text.slice(0, 40)}…` : text
}

/** Appends objects as lines. Throws ERR_RAPO_IO. */
export function appendJsonLines(file: string, values: readonly object[]): void {
  const text = [...toJsonLines(values)].join('')
  ioGuard(`cannot write ${file}`, () => appendFileSync(file, text))
}

/** Removes the lines of later steps, and a last line that a killed process left half-written. */
export function truncateJsonLines(file: string, lastStep: number): void {
  if (!existsSync(file)) return
  writeWhole(file, linesUpTo(lastStep, readFileSync(file)))
}

function* linesUpTo(lastStep: number, content: Buffer): Iterable<string> {
  for (let start = 0, end: number; start < content.length; start = end + 1) {
    end = content.indexOf(0x0a, start)
    if (end < 0) end = content.length
    const line = content.toString('utf8', start, end)
    if (stepOf(line) <= lastStep) yield `${line}\n`
  }
}

function stepOf(line: string): number {
  try {
    return (JSON.parse(line) as { step: number }).step
  } catch {
    return Number.NaN
  }
}

/** Objects as lines, one at a time, since all together may be longer than a string can be. */
export function* toJsonLines(values: Iterable<object>): Iterable<string> {
  for (const value of values) yield `${JSON.stringify(value)}\n`
}
