/** Problems from data files. */
import { watched } from '../base/call.js'
import { RapoError } from '../base/errors.js'
import { plural } from '../base/text.js'
import type { Message } from '../model/template.js'
import { checkAnswer, type Verifier } from '../reward/verifier.js'
import { chooseColumns, type DataOptions, hubOptions } from './fields.js'
import type { Row } from './rows.js'
import * as files from './rows.js'

/** One row of a problem file (docs/files.md). */
export interface Problem {
  readonly id: string
  /** The problem's text. For a conversation: the user's last message. */
  readonly prompt: string
  /** The conversation, if the row has a list of messages instead of a text. */
  readonly messages?: readonly Message[]
  /** The reference answer, in the form that the task's verifier expects. */
  readonly answer: unknown
  /** Name of the problem's group in an evaluation. */
  readonly difficulty?: string
  /** The row's other columns, for verifiers; absent where there are none. */
  readonly columns?: Readonly<Record<string, unknown>>
}

/**
 * Reads problem files (rows.ts says which); every answer is checked by the verifier. A row cannot be used
 *
 * - whose problem is missing or empty,
 * - whose answer is missing, refused by the verifier, or has lost a backslash,
 * - whose id or problem an earlier row has.
 *
 * Throws ERR_RAPO_DATA for such rows unless they are to be dropped, for a file that is missing, broken or empty, and for a
 * column that no row has: the message names file, row and why.
 */
export async function readProblems(
  given: string | readonly string[],
  verifier: Pick<Verifier, 'checkAnswer'>,
  options: DataOptions = {},
): Promise<Problem[]> {
  const rows = await files.readRows(given, { ...hubOptions(options), field: options.field })
  const name = files.nameOf(given)
  const columns = chooseColumns(rows, name, options)
  const areSeveral = rows.some(({ file }) => file !== rows[0]!.file)
  const earlier = { id: new Map<string, Row>(), prompt: new Map<string, Row>() }
  const problems: Problem[] = []
  const unusable: string[] = []
  for (const row of rows) {
    const { file, unit, number } = row
    const problem = parseProblem(row, columns, areSeveral ? `${file}:${number}` : String(number))
    const refuse = (fault: string) => unusable.push(`${files.placeOf(row)}: ${fault}`)
    if (typeof problem === 'string') {
      refuse(problem)
      continue
    }
    const asked = JSON.stringify(problem.messages ?? problem.prompt)
    const rowOf = (other: Row) => (other.file === file ? `${unit} ${other.number}` : files.placeOf(other))
    const [sameId, samePrompt] = [earlier.id.get(problem.id), earlier.prompt.get(asked)]
    const fault = sameId
      ? `has the id "${problem.id}" that ${rowOf(sameId)} has already`
      : samePrompt
        ? `has the problem that ${rowOf(samePrompt)} has already`
        : checkAnswer(verifier, problem.answer, files.placeOf(row))
    if (fault !== undefined) {
      refuse(fault)
      continue
    }
    earlier.id.set(problem.id, row)
    earlier.prompt.set(asked, row)
    problems.push(problem)
  }
  settleUnusable(unusable, rows.length, options)
  const { shards = 1, shard = 0 } = options
  const own = problems.filter((_, i) => i % shards === shard)
  if (own.length === 0) {
    throw new RapoError(
      'ERR_RAPO_DATA',
      `${name} has ${plural(problems.length, 'problem')}: shard ${shard} of ${shards} is empty`,
    )
  }
  return own
}

/** How many rows are spelled out. */
const SHOWN = 5

/**
 * Drops rows that cannot be used, each told by its place and what is wrong with it. Throws ERR_RAPO_DATA, with the first
 * few and a count of each kind, where they are not to be dropped, and where none would be left.
 * @param remedy what the last line advises beside data.dropUnusable, such as another value of a field
 */
export function settleUnusable(
  unusable: readonly string[],
  count: number,
  { dropUnusable = false, onUnusable }: DataOptions,
  remedy?: string,
): void {
  if (unusable.length === 0) return
  const isNoneLeft = unusable.length === count
  if (dropUnusable && !isNoneLeft) {
    const told = watched('onUnusable', onUnusable)
    told.call(unusable)
    told.failed.throwIfAborted()
    told.finish()
    return
  }
  const advice = [remedy, isNoneLeft ? undefined : 'data.dropUnusable: true leaves them out']
  const end = [`${unusable.length} of ${count} cannot be used`, ...advice.filter(text => text !== undefined)]
  throw new RapoError('ERR_RAPO_DATA', [...summarizeRows(unusable), end.join('; ')].join('\n'))
}

/** A few lines on many rows, each of which begins with its place: the first ones, and how many there are of each kind. */
export function summarizeRows(rows: readonly string[]): string[] {
  if (rows.length <= SHOWN + 1) return [...rows]
  const kinds = new Map<string, number>()
  for (const row of rows.slice(SHOWN)) {
    const kind = kindOf(row)
    kinds.set(kind, (kinds.get(kind) ?? 0) + 1)
  }
  const byCount = [...kinds].sort(([, a], [, b]) => b - a)
  const more = byCount.slice(0, SHOWN).map(([kind, number]) => `and ${number} more: ${kind}`)
  const others = byCount.slice(SHOWN).reduce((sum, [, number]) => sum + number, 0)
  return [...rows.slice(0, SHOWN), ...more, ...(others > 0 ? [`and ${others} others`] : [])]
}

/** What is wrong with a row, without its place, and without what differs from row to row. */
const kindOf = (row: string) =>
  row
    .replace(/^.*?(?::\d+| row \d+|problem "(?:[^"\\]|\\.)*"): /s, '')
    .replace(/"(?:[^"\\]|\\.)*"|\d+/gs, '…')

/** The problem, or the reason why the row is not a problem. */
function parseProblem(
  row: Row,
  columns: ReturnType<typeof chooseColumns>,
  defaultId: string,
): Problem | string {
  const cell = (part: keyof typeof columns) => columns[part].valueIn(row.value) ?? undefined
  const prompt = cell('problem')
  const answer = onlyEntry(cell('answer'))
  const [id = defaultId, difficulty] = [emptyAsAbsent(cell('id')), cell('difficulty')]
  if (typeof id !== 'string' && typeof id !== 'number') return `${columns.id.name} must be a text or a number`
  const isChat = Array.isArray(prompt)
  const fault = isChat ? messagesFault(prompt) : undefined
  if (fault) return `${columns.problem.name} ${fault}`
  if (!isChat && (typeof prompt !== 'string' || prompt === ''))
    return `${columns.problem.name} must be a text that is not empty`
  if (answer === undefined) return `${columns.answer.name} is missing`
  const lost = lostBackslash(answer)
  if (lost) return `${columns.answer.name} ${lost}`
  if (difficulty !== undefined && (!['string', 'number'].includes(typeof difficulty) || difficulty === '')) {
    return `${columns.difficulty.name} must be a text or a number`
  }
  if (difficulty === 'all')
    return `${columns.difficulty.name} "all" is the name of the whole set; choose another`
  return {
    id: String(id),
    ...(isChat
      ? { prompt: lastUserText(prompt as Message[]), messages: prompt.map(toMessage) }
      : { prompt: prompt as string }),
    answer,
    ...(difficulty === undefined ? {} : { difficulty: String(difficulty) }),
    ...otherColumns(row, columns),
  }
}

/** The columns that are not part of the problem. A column that a dotted name leads into stays, since it has other entries. */
function otherColumns({ value }: Row, columns: ReturnType<typeof chooseColumns>): Pick<Problem, 'columns'> {
  const own = new Set(Object.values(columns).map(({ name }) => name))
  const others = Object.entries(value).filter(([name]) => !own.has(name))
  return others.length > 0 ? { columns: Object.fromEntries(others) } : {}
}

const emptyAsAbsent = (value: unknown) => (value === '' ? undefined : value)

/** A list with one answer counts as that answer. A list of several goes to the verifier as it is. */
const onlyEntry = (answer: unknown) => (Array.isArray(answer) && answer.length === 1 ? answer[0] : answer)

/** What is wrong with a conversation as a prompt. */
export function messagesFault(messages: readonly unknown[]): string | undefined {
  const wanted =
    "must be a text, or a list of messages { role, content } of which the last is not the assistant's"
  const isMessage = (message: unknown) => {
    const { role, content } = (message ?? {}) as Partial<Message>
    return typeof role === 'string' && typeof content === 'string'
  }
  if (messages.length === 0 || !messages.every(isMessage)) return wanted
  const roles = (messages as Message[]).map(({ role }) => role)
  if (roles.at(-1) === 'assistant' || !roles.includes('user')) return wanted
  return undefined
}

/** Without what a dataset has beside these. */
export const toMessage = ({ role, content }: Message): Message => ({ role, content })

/** What VerifyContext calls the prompt of a conversation. */
export function lastUserText(messages: readonly Message[]): string {
  return messages.findLast(({ role }) => role === 'user')!.content
}

/** The control characters into which \b, \v, \f, \t, \r and \n turn if their backslash is not doubled. */
const controls: Readonly<Record<string, string>> = {
  ...{ '\b': 'b', '\v': 'v', '\f': 'f' },
  ...{ '\t': 't', '\r': 'r', '\n': 'n' },
}
const lostCommand =
  /[\b\v\f][A-Za-z]*|\t(?:ext|frac|imes|heta|riangle|binom|ilde|au)(?![a-z])|\r(?:ight|angle)(?![a-z])|\n(?:eq|abla|otin)(?![a-z])/

/** The fault of an answer in which a LaTeX command lost its backslash: no completion could ever equal the answer. */
function lostBackslash(answer: unknown): string | undefined {
  for (const text of [answer].flat()) {
    const found = typeof text === 'string' ? lostCommand.exec(text)?.[0] : undefined
    if (found === undefined) continue
    const command = `\\${controls[found[0]!]}${found.slice(1)}`
    return `holds a control character where ${command} lost its backslash: write \\${command} in the file's escaped text`
  }
  return undefined
}
