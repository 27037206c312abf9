/** Compares an answer with the reference: every reading of the one text with every reading of the other. */
import { Budget, Unreadable } from './budget.js'
import { createJudge } from './equal.js'
import { finalReference } from './extract.js'
import type { Judge, Tolerance } from './judge.js'
import { choiceOf, choicesOf, read, readAnyhow, readWithUnit } from './readings.js'
import { condense, textOf } from './texts.js'
import { MAX_ANSWER } from './tokens.js'
import { type Node, some } from './tree.js'

/** The result of a comparison: whether two answers are equal, and why. */
export interface Comparison {
  readonly isEqual: boolean
  /** The reason, one line for people. */
  readonly reason: string
}

/** Options of compareAnswers. */
export interface CompareOptions {
  /**
   * Applies if one of two values is a decimal. A number in (0, 1) is the allowed difference as a share of the reference.
   * 'digits' compares as many digits as the decimal shows. Default: values must be equal exactly.
   */
  readonly tolerance?: Tolerance | undefined
}

/** The work limit of one comparison in steps; budget.ts says what a step is. */
const MAX_STEPS = 10_000

/** Compares a final answer with the reference, both LaTeX or plain text. Never throws. */
export function compareAnswers(answer: string, reference: string, options: CompareOptions = {}): Comparison {
  if (answer.trim() === '') return unequal('the answer is empty')
  if (condense(answer) === condense(reference)) return equal('text')
  const judge = createJudge(new Budget(MAX_STEPS), options.tolerance)
  try {
    return compareTexts(plain(answer), plain(finalReference(reference)), judge)
  } catch (error) {
    if (error instanceof Unreadable) return unequal(`not shown to be equal: ${error.reason}`)
    throw error
  }
}

/** Removes Markdown's asterisks for bold type around the answer. */
function plain(source: string): string {
  if (source.length > MAX_ANSWER) return source
  return /^\s*\*\*([^*]+)\*\*\s*$/.exec(source)?.[1] ?? source
}

function compareTexts(answer: string, reference: string, judge: Judge): Comparison {
  const { budget } = judge
  if (condense(answer) === condense(reference)) return equal('text')
  const [own, wantedChoices] = [choicesOf(answer), choicesOf(reference)]
  if (
    own &&
    wantedChoices &&
    own.letters === wantedChoices.letters &&
    (own.areApart || wantedChoices.areApart)
  )
    return equal('choices')
  const [first, second] = [readAnyhow(answer, budget), readAnyhow(reference, budget)]
  const givenUnit = readWithUnit(answer, first, second, budget)
  const wantedUnit = readWithUnit(reference, second, first, budget)
  const given = typeof first === 'string' ? (givenUnit ?? first) : first
  const wanted = typeof second === 'string' ? (wantedUnit ?? second) : second
  if (typeof given === 'string' || typeof wanted === 'string' || wanted.type === 'text') {
    const text = textOf(answer)
    if (text !== '' && text === textOf(reference) && haveSameNumbers(answer, reference)) return equal('text')
    if (typeof given === 'string') return unequal(`the answer cannot be read: ${given}`)
    if (typeof wanted === 'string')
      return unequal(`not the text of the reference, which cannot be read: ${wanted}`)
  }
  const pairs: [given: Node, wanted: Node][] = [[given, wanted]]
  pairs.push(...choicePairs(answer, given, reference, wanted, budget))
  const isRead = (node: Node | string): node is Node => typeof node !== 'string'
  // If the reference is "100, 200", then "100,200" is two numbers as well.
  if (wanted.type === 'list' && given.type !== 'list' && /\d,\d{3}/.test(answer)) {
    pairs.push(
      ...[read(answer, budget, { commasSeparate: true })]
        .filter(isRead)
        .map((node): [Node, Node] => [node, wanted]),
    )
  }
  pairs.push(...decimalCommaPairs(answer, given, reference, wanted, budget))
  if (givenUnit) pairs.push([givenUnit, wanted])
  // The answer 17 \text{ m} equals the reference "17 m". The answer 17 does not, since "17 m" may be a product.
  if (wantedUnit && given.type === 'quantity') pairs.push([given, wantedUnit])
  let fault: Unreadable | undefined
  for (const [a, b] of pairs) {
    try {
      if (judge.isEqual(a, b)) return equal(nameOf(wanted))
    } catch (error) {
      if (!(error instanceof Unreadable)) throw error
      budget.spend(0)
      fault = error
    }
  }
  if (fault) throw fault
  const [name, wantedName] = [nameOf(given), nameOf(wanted)]
  return unequal(
    name === wantedName ? `not the same ${name}` : `${article(name)} ${name}, not the ${wantedName} wanted`,
  )
}

/** "October 30" may be typeset differently, but its numbers and signs must agree. */
function haveSameNumbers(a: string, b: string): boolean {
  const bare = (text: string) => text.replaceAll(/\\(?:text(?:bf|it|rm|normal)?|mbox|mathrm)|[\s{}$]/g, '')
  return !/\d/.test(a + b) || bare(a) === bare(b)
}

/** (D) 12 is D, or 12. If both sides have a letter and a text, both must agree. */
function choicePairs(
  answer: string,
  given: Node,
  reference: string,
  wanted: Node,
  budget: Budget,
): [Node, Node][] {
  const [own, other] = [choiceOf(answer), choiceOf(reference)]
  if (own?.text && other?.text) return []
  const parts = ({ letter, text }: { letter: string; text: string }): Node[] =>
    [read(letter, budget), ...(text === '' ? [] : [read(text, budget)])].filter(
      node => typeof node !== 'string',
    )
  return [
    ...(own ? parts(own).map((node): [Node, Node] => [node, wanted]) : []),
    ...(other ? parts(other).map((node): [Node, Node] => [given, node]) : []),
    ...(own && other && own.letter === other.letter ? [[given, given] as [Node, Node]] : []),
  ]
}

/** The answer 2,74 is 2.74, and [0,5; 1,5] has two decimals, unless the reference itself is a list of numbers. */
function decimalCommaPairs(
  answer: string,
  given: Node,
  reference: string,
  wanted: Node,
  budget: Budget,
): [Node, Node][] {
  const hasComma = (text: string) => /\d(?:,|\{,\})\d/.test(text)
  const hasDecimal = some(wanted, node => node.type === 'number' && node.value.denominator !== 1n)
  const pairs: [Node, Node][] = []
  const mayBeOne = wanted.type !== 'list' && wanted.type !== 'brackets' && hasDecimal
  if (hasComma(answer) && (mayBeOne || answer.includes(';'))) {
    const node = read(answer, budget, { commasAreDecimal: true })
    if (typeof node !== 'string') pairs.push([node, wanted])
  }
  if (hasComma(reference) && reference.includes(';')) {
    const node = read(reference, budget, { commasAreDecimal: true })
    if (typeof node !== 'string') pairs.push([given, node])
  }
  return pairs
}

function equal(name: string): Comparison {
  return { isEqual: true, reason: `the same ${name}` }
}

function unequal(reason: string): Comparison {
  return { isEqual: false, reason }
}

function article(name: string): string {
  return /^[aeiou]/.test(name) ? 'an' : 'a'
}

function nameOf(node: Node): string {
  switch (node.type) {
    case 'brackets':
      return node.open === '\\{' ? 'set' : 'tuple or interval'
    case 'list':
    case 'matrix':
    case 'text':
    case 'ratio':
    case 'family':
    case 'congruence':
      return node.type
    case 'relation':
      return node.signs.every(sign => sign === '=' || sign === '~') ? 'equation' : 'set'
    case 'union':
    case 'intersection':
    case 'difference':
      return 'set'
    default:
      return 'value'
  }
}
