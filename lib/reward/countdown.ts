/** The verifier `countdown`: docs/countdown.md states the rules. Exact rational arithmetic; nothing is evaluated. */
import type { Verdict, Verifier } from './verifier.js'

/** The answer of a problem of the game: its numbers and the target to make of them. */
export interface CountdownAnswer {
  readonly numbers: readonly number[]
  readonly target: number
}

const MAX_NUMBERS = 16
export const MAX_LENGTH = 256
export const MAX_DEPTH = 16

export const countdown: Verifier = {
  checkAnswer(answer) {
    const { numbers, target } = (answer ?? {}) as Partial<CountdownAnswer>
    const isPositive = (value: unknown) => Number.isSafeInteger(value) && (value as number) > 0
    if (!Array.isArray(numbers) || numbers.length === 0 || numbers.length > MAX_NUMBERS) {
      return `answer.numbers must be a list of 1 to ${MAX_NUMBERS} numbers`
    }
    if (!numbers.every(isPositive)) return 'answer.numbers must be whole numbers above 0'
    if (!Number.isSafeInteger(target)) return 'answer.target must be a whole number'
    return undefined
  },
  verify: (completion, answer) => verifyCountdown(completion, answer as CountdownAnswer),
}

/**
 * Reward 1 exactly where the completion is an expression that follows the rules and equals the target, else 0.
 * Never throws, whatever the text.
 */
export function verifyCountdown(completion: string, { numbers, target }: CountdownAnswer): Verdict {
  const result = evaluate(completion, numbers)
  if (typeof result === 'string') return { reward: 0, reason: result }
  const isCorrect = result.numerator === BigInt(target) * result.denominator
  const answer = format(result)
  return isCorrect
    ? { reward: 1, reason: 'correct', answer }
    : { reward: 0, reason: `equals ${answer}, not ${target}`, answer }
}

/** Any terms, any signs, denominator not 0: at most 16 numbers cannot grow far. */
interface Rational {
  readonly numerator: bigint
  readonly denominator: bigint
}

/** Thrown to end the parse. No Error: the stack trace of each malformed completion would cost more than its parse. */
class Malformed {
  constructor(readonly reason: string) {}
}

/** The expression's value, or why it has none. */
function evaluate(text: string, numbers: readonly number[]): Rational | string {
  if (text.length > MAX_LENGTH) return `longer than ${MAX_LENGTH} characters`
  const left = [...numbers]
  let at = 0

  const skipSpaces = () => {
    while (at < text.length && ' \t\r\n'.includes(text[at]!)) at++
  }
  /** The next character that is no white space, taken if it is one of these. */
  const take = (characters: string) => {
    skipSpaces()
    const character = text[at]
    if (character === undefined || !characters.includes(character)) return undefined
    at++
    return character
  }
  const unexpected = (wanted: string) => {
    const found = at < text.length ? JSON.stringify(text[at]) : 'the end'
    return new Malformed(`expected ${wanted} but found ${found} at position ${at + 1}`)
  }

  const sum = (depth: number): Rational => {
    let value = product(depth)
    for (let sign = take('+-'); sign; sign = take('+-')) {
      const { numerator, denominator } = product(depth)
      const term = (sign === '+' ? numerator : -numerator) * value.denominator
      value = {
        numerator: value.numerator * denominator + term,
        denominator: value.denominator * denominator,
      }
    }
    return value
  }
  const product = (depth: number): Rational => {
    let value = factor(depth)
    for (let sign = take('*/'); sign; sign = take('*/')) {
      const { numerator, denominator } = factor(depth)
      if (sign === '*') {
        value = {
          numerator: value.numerator * numerator,
          denominator: value.denominator * denominator,
        }
      } else {
        if (numerator === 0n) throw new Malformed('divides by zero')
        value = {
          numerator: value.numerator * denominator,
          denominator: value.denominator * numerator,
        }
      }
    }
    return value
  }
  const factor = (depth: number): Rational => {
    if (take('(')) {
      if (depth === MAX_DEPTH) throw new Malformed(`brackets deeper than ${MAX_DEPTH}`)
      const value = sum(depth + 1)
      if (!take(')')) throw unexpected('")"')
      return value
    }
    return literal()
  }
  const literal = (): Rational => {
    skipSpaces()
    const digits = /^[0-9]+/.exec(text.slice(at))?.[0]
    if (digits === undefined) throw unexpected('a number or "("')
    // By its text, so that neither 07 nor a number beyond 2^53 passes for another.
    const index = left.findIndex(number => String(number) === digits)
    if (index < 0) {
      const isGiven = numbers.some(number => String(number) === digits)
      throw new Malformed(isGiven ? `uses ${digits} more often than given` : `${digits} is not given`)
    }
    left.splice(index, 1)
    at += digits.length
    return { numerator: BigInt(digits), denominator: 1n }
  }

  try {
    const value = sum(0)
    skipSpaces()
    if (at < text.length) throw unexpected('an operator or the end')
    return value
  } catch (error) {
    if (error instanceof Malformed) return error.reason
    throw error
  }
}

/** In lowest terms, denominator > 0. */
function format({ numerator, denominator }: Rational): string {
  let a = numerator < 0n ? -numerator : numerator
  let b = denominator < 0n ? -denominator : denominator
  while (b) [a, b] = [b, a % b]
  if (denominator < 0n) a = -a
  return denominator === a ? String(numerator / a) : `${numerator / a}/${denominator / a}`
}
