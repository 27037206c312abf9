/** Reads a configuration file, and says in plain words where the file is no YAML. */
import { readFileSync } from 'node:fs'
import { type Document, LineCounter, parseDocument, visit } from 'yaml'
import { RapoError } from '../base/errors.js'
import { ioReason, withPlace } from '../base/files.js'

export interface ConfigFile {
  readonly values: Record<string, unknown>
  /** The line, from 1, on which the value of a field or group stands. */
  lineOf(path: readonly string[]): number | undefined
}

/** The values of a YAML or JSON file. Throws ERR_RAPO_CONFIG naming file, line and fault. */
export function readConfigFile(file: string): ConfigFile {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (cause) {
    throw new RapoError('ERR_RAPO_CONFIG', `cannot read ${withPlace(file)}: ${ioReason(cause, file)}`, {
      cause,
    })
  }
  const lines = new LineCounter()
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, logLevel: 'error' })
  const fault = firstFault(document)
  if (fault && isJsonLines(text)) {
    const what = 'this is JSON Lines, such as a problem file, and no configuration'
    throw new RapoError('ERR_RAPO_CONFIG', `${withPlace(file)}: ${what}`)
  }
  if (fault) {
    const { line } = lines.linePos(fault.at)
    const shown = text.split('\n')[line - 1]!.trim()
    throw new RapoError('ERR_RAPO_CONFIG', `${file}:${line}: ${fault.why}\n  ${shown}`)
  }
  let values: unknown
  try {
    values = document.toJS() ?? {}
  } catch (cause) {
    // Aliases that would grow without bound.
    throw new RapoError('ERR_RAPO_CONFIG', `${file}: ${(cause as Error).message}`, { cause })
  }
  if (typeof values !== 'object' || values === null || Array.isArray(values)) {
    throw new RapoError('ERR_RAPO_CONFIG', `${file} must hold groups of fields, such as model: and data:`)
  }
  const lineOf = (path: readonly string[]) => {
    const node = document.getIn(path, true) as { range?: [number, number, number] | null } | undefined
    return node?.range ? lines.linePos(node.range[0]).line : undefined
  }
  return { values: values as Record<string, unknown>, lineOf }
}

/** Whether each of the first two lines is a JSON object. */
function isJsonLines(text: string): boolean {
  const isObject = (line: string) => {
    try {
      return JSON.parse(line)?.constructor === Object
    } catch {
      return false
    }
  }
  const lines = text.split('\n', 2)
  return lines.length === 2 && lines.every(isObject)
}

interface Fault {
  /** Of the text, in characters. */
  readonly at: number
  readonly why: string
}

function firstFault(document: Document.Parsed): Fault | undefined {
  const [error] = document.errors
  if (error) return { at: error.pos[0], why: explain(error.code, error.message) }
  // The parser would drop the beginning of such a text.
  const tag = document.warnings.find(({ code }) => code === 'TAG_RESOLVE_FAILED')
  if (tag) return { at: tag.pos[0], why: 'a text that begins with ! must stand in quotes' }
  let fault: Fault | undefined
  visit(document, {
    Alias(_, alias) {
      if (alias.resolve(document)) return undefined
      const why = `a text that begins with * must stand in quotes: "*${alias.source}"`
      fault = { at: alias.range![0], why }
      return visit.BREAK
    },
  })
  return fault
}

/** A fault of the file's form, by the parser's code for it. */
function explain(code: string, message: string): string {
  const missing = /end with a (.)|Missing closing (.)quote/.exec(message)
  if (missing) return `the closing ${missing[1] ?? missing[2]} is missing, on this line or before it`
  const plain = Object.hasOwn(explanations, code) ? explanations[code] : undefined
  return plain ?? `this is no YAML: ${message}`
}

const noValue =
  'a line must be `field: value`, with a space behind the colon, or end with the colon of a group'

const explanations: Readonly<Record<string, string>> = {
  TAB_AS_INDENT: 'the line begins with a tab; YAML is indented with spaces',
  BAD_INDENT: 'the line is indented otherwise than the fields before it',
  BAD_SCALAR_START: 'a text that begins with @, % or ` must stand in quotes',
  BAD_DQ_ESCAPE: 'a backslash in double quotes must be doubled; in single quotes it stays as it is',
  BLOCK_AS_IMPLICIT_KEY:
    'two fields on one line, or a line below that is indented too far; a text with a colon and a space must stand in quotes',
  BLOCK_IN_FLOW: 'the comma between two fields is missing',
  DUPLICATE_KEY: 'the field stands here a second time',
  MISSING_CHAR: noValue,
  MULTILINE_IMPLICIT_KEY: noValue,
  MULTIPLE_DOCS: 'the file must hold one document: remove the line ---',
}
