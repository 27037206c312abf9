/** Problems from JSON Lines files, and the order in which training takes them. */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { RapoError } from './errors.js'
import { createRandom, deriveSeed } from './random.js'
import type { Verifier } from './reward/verifier.js'

/** One line of a problem file (docs/files.md). */
export interface Problem {
  readonly id: string
  readonly prompt: string
  /** What the task's verifier expects. */
  readonly answer: unknown
  /** Splits the evaluation. */
  readonly difficulty?: string
}

export interface Line {
  readonly value: Readonly<Record<string, unknown>>
  /** From 1. */
  readonly number: number
}

/** The lines of a JSON Lines text, each an object; blank lines are skipped. Throws ERR_RAPO_DATA naming file, line, why. */
export function parseJsonLines(content: Buffer, file: string): Line[] {
  const decoder = new TextDecoder('utf-8', { fatal: true })
  const lines: Line[] = []
  let start = 0
  for (let number = 1; start < content.length; number++) {
    const newline = content.indexOf(0x0a, start)
    const end = newline < 0 ? content.length : newline
    const bytes = content.subarray(start, end)
    start = end + 1
    let text: string
    try {
      text = decoder.decode(bytes)
    } catch {
      throw lineError(file, number, 'is not UTF-8 text')
    }
    if (text.trim() === '') continue
    let value: unknown
    try {
      value = JSON.parse(text)
    } catch (error) {
      throw lineError(file, number, `is not JSON: ${(error as Error).message}`)
    }
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw lineError(file, number, `must be a JSON object, not ${shorten(text)}`)
    }
    lines.push({ value: value as Record<string, unknown>, number })
  }
  return lines
}

/**
 * Reads a problem file; every answer is checked by the verifier. Throws ERR_RAPO_DATA for a file that is missing or
 * empty, a broken line, two problems with one id: the message names file, line and why.
 */
export function readProblems(file: string, verifier: Pick<Verifier, 'checkAnswer'>): Problem[] {
  const lines = parseJsonLines(readInput(file), file)
  if (lines.length === 0) throw new RapoError('ERR_RAPO_DATA', `${file} holds no problem`)
  const lineOf = new Map<string, number>()
  return lines.map(({ value, number }) => {
    const problem = parseProblem(value, number, why => lineError(file, number, why))
    const earlier = lineOf.get(problem.id)
    if (earlier !== undefined) {
      throw lineError(file, number, `has the id "${problem.id}" that line ${earlier} has already`)
    }
    lineOf.set(problem.id, number)
    const fault = verifier.checkAnswer(problem.answer)
    if (fault !== undefined) throw lineError(file, number, fault)
    return problem
  })
}

/** A file's bytes, or ERR_RAPO_DATA saying why there are none. */
export function readInput(file: string | number): Buffer {
  try {
    return readFileSync(file)
  } catch (cause) {
    throw new RapoError('ERR_RAPO_DATA', `cannot read ${file}: ${(cause as Error).message}`, { cause })
  }
}

function parseProblem(value: Line['value'], line: number, fault: (why: string) => RapoError): Problem {
  const { id = line, prompt, answer, difficulty } = value
  if (typeof id !== 'string' && typeof id !== 'number') throw fault('id must be a text or a number')
  if (typeof prompt !== 'string' || prompt === '') throw fault('prompt must be a text that is not empty')
  if (answer === undefined) throw fault('answer is missing')
  if (difficulty !== undefined && (typeof difficulty !== 'string' || difficulty === '')) {
    throw fault('difficulty must be a text that is not empty')
  }
  if (difficulty === 'all') throw fault('difficulty "all" is the name of the whole set; choose another')
  return { id: String(id), prompt, answer, ...(difficulty === undefined ? {} : { difficulty }) }
}

function lineError(file: string, line: number, why: string): RapoError {
  return new RapoError('ERR_RAPO_DATA', `${file}:${line}: line ${line} ${why}`)
}

function shorten(text: string): string {
  return text.length > 40 ? `${text.slice(0, 40)}…` : text
}

/** Where a cursor stands; with the seed, all that decides which problems come next. */
export interface CursorState {
  /** Whole passes over the problems so far. */
  readonly epoch: number
  /** Problems taken in this pass. */
  readonly position: number
  /** Of the problems, so that a changed file is noticed. */
  readonly fingerprint: string
}

export interface Cursor {
  next(count: number): Problem[]
  state(): CursorState
}

/**
 * Takes problems in an order that is a new seeded permutation each epoch; a batch may span two epochs. With the state
 * of an earlier cursor it goes on from there; throws ERR_RAPO_DATA where the problems are not those of that state.
 */
export function createCursor(problems: readonly Problem[], seed: number, from?: CursorState): Cursor {
  const fingerprint = createHash('sha256').update(JSON.stringify(problems)).digest('hex').slice(0, 16)
  if (from && from.fingerprint !== fingerprint) {
    throw new RapoError(
      'ERR_RAPO_DATA',
      'the training problems are not those that the checkpoint was made with',
    )
  }
  if (from && from.position > problems.length) {
    throw new RapoError(
      'ERR_RAPO_DATA',
      `the checkpoint's position ${from.position} lies beyond the ${problems.length} training problems`,
    )
  }
  const orderOf = (epoch: number) => createRandom(deriveSeed(seed, 'epoch', epoch)).shuffle(problems)
  let epoch = from?.epoch ?? 0
  let position = from?.position ?? 0
  let order = orderOf(epoch)
  return {
    next(count) {
      const taken: Problem[] = []
      while (taken.length < count) {
        if (position === order.length) {
          epoch++
          position = 0
          order = orderOf(epoch)
        }
        taken.push(order[position++]!)
      }
      return taken
    },
    state: () => ({ epoch, position, fingerprint }),
  }
}
