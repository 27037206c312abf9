/** Every way to write a target with all of the given numbers. Used to make problems and solved examples. */

export interface Solution {
  readonly text: string
  /** Only + and −, no brackets. */
  readonly isPlain: boolean
}

interface Term {
  readonly numerator: number
  readonly denominator: number
  readonly text: string
  /** How tightly the outermost operator binds: 1 for + −, 2 for × ÷, 3 for a number. */
  readonly binding: 1 | 2 | 3
}

/**
 * All expressions that use each number exactly once and have a whole value, grouped by that value. Brackets stand only where
 * the value needs them, so that each calculation has one spelling for each order of its operands. For 2 to 4 small numbers.
 */
export function solve(numbers: readonly number[]): Map<number, Solution[]> {
  const terms = new Map<string, Term>()
  for (const term of build(numbers)) terms.set(term.text, term)
  const byValue = new Map<number, Solution[]>()
  for (const { numerator, denominator, text } of terms.values()) {
    if (numerator % denominator !== 0) continue
    const value = numerator / denominator
    const solutions = byValue.get(value) ?? []
    solutions.push({ text, isPlain: !/[*/(]/.test(text) })
    byValue.set(value, solutions)
  }
  return byValue
}

function build(numbers: readonly number[]): Term[] {
  if (numbers.length === 1) {
    return [{ numerator: numbers[0]!, denominator: 1, text: String(numbers[0]), binding: 3 }]
  }
  const terms: Term[] = []
  // Each proper subset on the left, the rest on the right.
  for (let subset = 1; subset < 2 ** numbers.length - 1; subset++) {
    const lefts = build(numbers.filter((_, i) => subset & (1 << i)))
    const rights = build(numbers.filter((_, i) => !(subset & (1 << i))))
    for (const left of lefts) for (const right of rights) terms.push(...combine(left, right))
  }
  return terms
}

function combine(a: Term, b: Term): Term[] {
  const write = (sign: string, binding: 1 | 2, rightBinding: number) => {
    const left = a.binding < binding ? `(${a.text})` : a.text
    const right = b.binding < rightBinding ? `(${b.text})` : b.text
    return { text: `${left}${sign}${right}`, binding }
  }
  const denominator = a.denominator * b.denominator
  const [x, y] = [a.numerator * b.denominator, b.numerator * a.denominator]
  const results: Term[] = [
    { numerator: x + y, denominator, ...write('+', 1, 1) },
    { numerator: x - y, denominator, ...write('-', 1, 2) },
    { numerator: a.numerator * b.numerator, denominator, ...write('*', 2, 2) },
  ]
  if (y !== 0) results.push({ numerator: x, denominator: y, ...write('/', 2, 3) })
  return results
}

/** Values that some of the numbers, but not all of them, reach. */
export function partialValues(numbers: readonly number[]): Set<number> {
  const values = new Set<number>()
  for (let subset = 1; subset < 2 ** numbers.length - 1; subset++) {
    for (const value of solve(numbers.filter((_, i) => subset & (1 << i))).keys()) values.add(value)
  }
  return values
}

export interface CountdownProblem {
  readonly numbers: readonly number[]
  readonly target: number
  readonly difficulty: 'easy' | 'hard'
  readonly solutions: readonly Solution[]
}

/** The prompt that the bundled model was made for. */
export function promptOf({ numbers, target }: Pick<CountdownProblem, 'numbers' | 'target'>): string {
  return `${numbers.join(' ')}=${target}:`
}

/**
 * Every problem of three ascending numbers 1 … maxNumber with a target 1 … maxTarget that all three reach, but no part
 * of them does. Easy: some solution needs neither × nor ÷ (then it needs no brackets either); hard: all the others.
 */
export function listProblems(maxNumber = 15, maxTarget = 99): CountdownProblem[] {
  const problems: CountdownProblem[] = []
  for (let a = 1; a <= maxNumber; a++) {
    for (let b = a; b <= maxNumber; b++) {
      for (let c = b; c <= maxNumber; c++) {
        const numbers = [a, b, c]
        const tooEasy = partialValues(numbers)
        for (const [target, solutions] of solve(numbers)) {
          if (target < 1 || target > maxTarget || tooEasy.has(target)) continue
          const difficulty = solutions.some(solution => solution.isPlain) ? 'easy' : 'hard'
          problems.push({ numbers, target, difficulty, solutions })
        }
      }
    }
  }
  return problems
}
