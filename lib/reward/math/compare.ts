/** Are an answer and the reference the same? Structure first, then the values in it. */
import { exactValue } from './evaluate.js'
import { parseAnswer } from './parse.js'
import { areSameSets, isSetLike, toSet } from './sets.js'
import { MAX_ANSWER, type Reading, replaceUnicode } from './tokens.js'
import { Budget, mapParts, type Node, type NodeOf, partsOf, some, Unreadable } from './tree.js'
import { haveSameDimensions, isKnown, readUnit } from './units.js'
import { areProportional, haveSameValue, order } from './value.js'

/** Whether two answers are equal, and why. */
export interface Comparison {
  readonly isEqual: boolean
  /** One line for a person. */
  readonly reason: string
}

/** Of one comparison: tree.ts says what a step is. */
const MAX_STEPS = 10_000
/** ± in one answer: each doubles the values. */
const MAX_PLUS_MINUS = 4

/** Compares a final answer with the reference, both LaTeX or plain text. Never throws. */
export function compareAnswers(answer: string, reference: string): Comparison {
  if (answer.trim() === '') return unequal('the answer is empty')
  return compareTexts(plain(answer), plain(reference))
}

/** Without Markdown's asterisks for bold type around it. */
function plain(source: string): string {
  if (source.length > MAX_ANSWER) return source
  return /^\s*\*\*([^*]+)\*\*\s*$/.exec(source)?.[1] ?? source
}

function compareTexts(answer: string, reference: string): Comparison {
  if (condense(answer) === condense(reference)) return { isEqual: true, reason: 'the same text' }
  const budget = new Budget(MAX_STEPS)
  const [first, second] = [readAnyhow(answer), readAnyhow(reference)]
  const givenUnit = readWithUnit(answer, first, second)
  const wantedUnit = readWithUnit(reference, second, first)
  const given = typeof first === 'string' ? (givenUnit ?? first) : first
  const wanted = typeof second === 'string' ? (wantedUnit ?? second) : second
  const wantedText = typeof wanted === 'string' || wanted.type === 'text'
  if (typeof given === 'string' || wantedText) {
    const text = textOf(answer)
    if (text !== '' && text === textOf(reference) && !/\d/.test(text))
      return { isEqual: true, reason: 'the same text' }
    if (typeof given === 'string') return unequal(`the answer cannot be read: ${given}`)
    if (typeof wanted === 'string')
      return unequal(`not the text of the reference, which cannot be read: ${wanted}`)
  }
  try {
    const readings = [[given, wanted as Node]]
    for (const node of readChoice(answer)) readings.push([node, wanted as Node])
    for (const node of readChoice(reference)) readings.push([given, node])
    // "100, 200" as the reference: then "100,200" are two numbers as well.
    if ((wanted as Node).type === 'list' && given.type !== 'list' && /\d,\d{3}/.test(answer)) {
      const separated = read(answer, { commasSeparate: true })
      if (typeof separated !== 'string') readings.push([separated, wanted as Node])
    }
    if (givenUnit) readings.push([givenUnit, wanted as Node])
    // 17 \text{ m} for "17 m"; but 17 is not the reference 17 m, which may be a product.
    if (wantedUnit && given.type === 'quantity') readings.push([given, wantedUnit])
    for (const [a, b] of readings) {
      if (isEqual(a!, b!, budget)) return { isEqual: true, reason: `the same ${nameOf(wanted as Node)}` }
    }
    return unequal(
      nameOf(given) === nameOf(wanted as Node)
        ? `not the same ${nameOf(given)}`
        : `a ${nameOf(given)}, not the ${nameOf(wanted as Node)} wanted`,
    )
  } catch (error) {
    if (error instanceof Unreadable) return unequal(`not shown to be equal: ${error.reason}`)
    throw error
  }
}

function unequal(reason: string): Comparison {
  return { isEqual: false, reason }
}

/** The tree, or why there is none. */
function read(source: string, reading?: Reading): Node | string {
  try {
    return expand(membersOf(parseAnswer(source, reading)))
  } catch (error) {
    if (error instanceof Unreadable) return error.reason
    throw error
  }
}

/** "60 m" and "60 km/h" with their units, where the other has none of the names that the letters could be. */
function readWithUnit(source: string, own: Node | string, other: Node | string): Node | undefined {
  if (isWithoutNames(own) || !isWithoutNames(other)) return undefined
  const node = read(source, { lettersAreUnits: true })
  return typeof node === 'string' ? undefined : node
}

function isWithoutNames(node: Node | string): boolean {
  return typeof node !== 'string' && !some(node, ({ type }) => type === 'variable' || type === 'text')
}

/** x ∈ {3, 5} as {3, 5}. */
function membersOf(node: Node): Node {
  if (node.type !== 'relation' || String(node.signs) !== 'in' || !isName(node.items[0]!)) return node
  const [, set] = node.items
  return set!.type === 'brackets' && set!.open === '\\{' ? set! : node
}

/** What cannot be read as a whole: by the choice it names, or by the last formula between dollar signs in prose. */
function readAnyhow(source: string): Node | string {
  const node = read(source)
  if (typeof node !== 'string' || source.length > MAX_ANSWER) return node
  const [choice] = readChoice(source)
  if (choice) return choice
  const formula = [...source.slice(-1000).matchAll(/\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]/gs)]
    .at(-1)
    ?.slice(1)
    .find(Boolean)
  const inner = formula === undefined || formula.trim() === source.trim() ? node : read(formula)
  return typeof inner === 'string' ? node : inner
}

/** "(D) 12" and "\textbf{(D)} 12": the letter, and what stands behind it. */
function readChoice(source: string): Node[] {
  const match =
    /^(?:\\(?:text(?:bf|rm|it)?|mathrm|mathbf|mbox) ?\{)? ?\(([A-J])\)(?: ?\}|[\s~])[\s~:.]*(\S.*)$/s.exec(
      source.slice(0, MAX_ANSWER).trim(),
    )
  if (!match) return []
  return [match[1]!, match[2]!].map(part => read(part)).filter(node => typeof node !== 'string')
}

function nameOf(node: Node): string {
  switch (node.type) {
    case 'brackets':
      return node.open === '\\{' ? 'set' : 'tuple or interval'
    case 'list':
    case 'matrix':
    case 'text':
    case 'ratio':
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

/** A text without the white space and dollar signs that say nothing. */
function condense(source: string): string {
  return source
    .trim()
    .replaceAll(/[\s$]+/g, (run, at: number, all: string) =>
      /[A-Za-z\d,]/.test(all[at - 1] ?? '') && /[A-Za-z\d]/.test(all[at + run.length] ?? '') ? ' ' : '',
    )
}

/** Words alone: no markup, no punctuation, no articles, lower case. */
function textOf(source: string): string {
  if (source.length > MAX_ANSWER) return source
  return replaceUnicode(source)
    .replaceAll(
      /\\(?:text(?:bf|it|rm|normal)?|mbox|mathrm|mathbf|mathit|operatorname|left|right|boxed|fbox|[,;:! ])/g,
      ' ',
    )
    .replaceAll(/[\s{}$()[\].,;:!?~"'`\\]+/g, ' ')
    .replaceAll(/\b(?:the|an?) (?=[a-z]{3})/gi, '')
    .trim()
    .toLowerCase()
}

/** A name or word as text; undefined for what is computed. */
function wordOf(node: Node): string | undefined {
  if (node.type === 'text') return textOf(node.text)
  if (node.type === 'variable') return node.name.toLowerCase()
  if (node.type === 'constant') return node.name === 'e' || node.name === 'i' ? node.name : undefined
  if (node.type === 'product') {
    const words = node.items.map(wordOf)
    return words.includes(undefined) ? undefined : words.join('')
  }
  return node.type === 'brackets' && node.items.length === 1 ? wordOf(node.items[0]!) : undefined
}

/** Throws Unreadable where it cannot be decided. a is the answer, b the reference. */
function isEqual(a: Node, b: Node, budget: Budget): boolean {
  budget.spend(5)
  const isText = a.type === 'text' || b.type === 'text'
  if (isText && a.type !== 'relation' && b.type !== 'relation') {
    const [word, wanted] = [wordOf(a), wordOf(b)]
    return word !== undefined && word === wanted
  }
  if (isSetLike(a) || isSetLike(b)) {
    const verdict = compareSets(a, b, budget)
    if (verdict !== undefined) return verdict
  }
  if (a.type === 'relation' || b.type === 'relation') return compareRelations(a, b, budget)
  if (a.type === 'list' || b.type === 'list') return compareLists(a, b, budget)
  if (isCollection(a) || isCollection(b)) return compareCollections(a, b, budget)
  return compareQuantities(a, b, budget)
}

/** Answers with ± as the list of what they stand for. ± and ∓ go together; without a ∓ each ± is on its own. */
function expand(node: Node): Node {
  if (node.type === 'list' || (node.type === 'brackets' && node.open === '\\{')) {
    const items = node.items.flatMap(item => {
      const expanded = expand(item)
      return expanded !== item && expanded.type === 'list' ? expanded.items : [expanded]
    })
    const isChanged = items.length !== node.items.length || items.some((item, i) => item !== node.items[i])
    return isChanged ? { ...node, items } : node
  }
  if (node.type === 'relation' && node.items.some(item => item.type === 'brackets' && item.open === '\\{')) {
    return { ...node, items: node.items.map(expand) }
  }
  let count = 0
  const isTied = some(node, part => part.type === 'minusPlus')
  some(node, part => {
    if (part.type === 'plusMinus' || part.type === 'minusPlus') count++
    return false
  })
  if (count === 0) return node
  if (count > MAX_PLUS_MINUS && !isTied) throw new Unreadable('too many ±')
  const choices = isTied ? 2 : 2 ** count
  const items = Array.from({ length: choices }, (_, choice) => {
    let seen = 0
    const choose = (part: Node): Node => {
      if (part.type !== 'plusMinus' && part.type !== 'minusPlus') return mapParts(part, choose)
      const bit = isTied ? choice : (choice >> seen++) & 1
      const isMinus = (bit === 1) === (part.type === 'plusMinus')
      const item = choose(part.item)
      return isMinus ? { type: 'minus', item } : item
    }
    return choose(node)
  })
  // x ≠ ±1 is x ≠ 1 and x ≠ −1.
  const isNeither = node.type === 'relation' && node.signs.includes('!=')
  return { type: 'list', connector: isNeither ? 'and' : 'or', items }
}

/** undefined where one is no set of real numbers. */
function compareSets(a: Node, b: Node, budget: Budget): boolean | undefined {
  try {
    return areSameSets(toSet(a, budget), toSet(b, budget), budget)
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error
    budget.spend(0)
    return undefined
  }
}

/** A name for what is computed: x, f(x), AB, (a, b), P(A). */
function isName(node: Node): boolean {
  if (node.type === 'variable' || node.type === 'text') return true
  if (node.type === 'brackets') return node.open === '(' && node.items.every(isName)
  if (node.type === 'ratio') return node.items.every(isName)
  if (node.type === 'product') {
    const [first, ...rest] = node.items
    return (
      first!.type === 'variable' &&
      rest.every(item => isName(item) || item.type === 'number' || item.type === 'brackets')
    )
  }
  return node.type === 'constant' && (node.name === 'e' || node.name === 'i')
}

/** What is asked for by more than a name: p + q, ab, cos θ, |AB|. Not what is to be solved for x: 2x, x^2, |x|. */
function isExpressionName(node: Node): boolean {
  const variables = new Set<string>()
  some(node, part => {
    if (part.type === 'variable') variables.add(part.name)
    return false
  })
  const isAngle = node.type === 'call' && /^(?:sin|cos|tan|cot|sec|csc)$/.test(node.name)
  return variables.size > (isAngle ? 0 : 1)
}

/** f^{-1}(x), \frac{dy}{dx} */
function isFunctionName(node: Node): boolean {
  if (node.type === 'quotient') {
    return [node.left, node.right].every(part => /^d[a-z]$/.test(wordOf(part) ?? ''))
  }
  if (node.type !== 'product' || node.items.length !== 2) return false
  const [power, argument] = node.items
  return (
    power!.type === 'power' &&
    power!.left.type === 'variable' &&
    power!.right.type === 'minus' &&
    (isName(argument!) || argument!.type === 'number')
  )
}

/** What an equation calls its value, and the values behind the names, all of which must agree. */
function namedValues(node: Node): { names: readonly Node[]; values: readonly Node[] } {
  if (node.type !== 'relation') return { names: [], values: [node] }
  const exact = node.signs.indexOf('~')
  const signs = exact < 0 ? node.signs : node.signs.slice(0, exact)
  const items = exact < 0 ? node.items : node.items.slice(0, exact + 1)
  if (signs.some(sign => sign !== '=')) throw new Unreadable('an inequality that is not solved')
  const isNamedLast = items.length === 2 && isName(items[1]!) && !isName(items[0]!)
  if (isNamedLast) return { names: [items[1]!], values: [items[0]!] }
  let count = 0
  while (count < items.length - 1 && isName(items[count]!)) count++
  return { names: items.slice(0, count), values: items.slice(count) }
}

function compareRelations(answer: Node, reference: Node, budget: Budget): boolean {
  const [a, b] = [asEquation(answer), asEquation(reference)]
  // x = 10, y = 3 for (10, 3)
  const [tupleA, tupleB] = [namedTuple(a), namedTuple(b)]
  if (tupleA && b.type === 'brackets') return isEqual(tupleA, b, budget)
  if (tupleB && a.type === 'brackets') return isEqual(a, tupleB, budget)
  if (a.type === 'list' || b.type === 'list') return compareLists(a, b, budget)
  if (isInequality(a) || isInequality(b))
    return isInequality(a) && isInequality(b) && compareInequalities(a, b, budget)
  if (isPlainEquation(a) && isPlainEquation(b)) {
    const [f, g] = [differenceOf(a), differenceOf(b)]
    if (f && g && attempt(() => areProportional(f, g, budget), budget)) return true
  }
  const [valueA, valueB] = [expressionValue(a), expressionValue(b)]
  if (valueA && !isRelation(b)) return isEqual(valueA, b, budget)
  if (valueB && !isRelation(a)) return isEqual(a, valueB, budget)
  if (!isRightlyRounded(a, budget) || !isRightlyRounded(b, budget)) return false
  const [left, right] = [namedValues(a), namedValues(b)]
  const variables = [left, right].map(({ names }) =>
    names.flatMap(name => (name.type === 'variable' ? name.name : [])),
  )
  const [ownNames, wantedNames] = variables as [string[], string[]]
  if (ownNames.length > 0 && wantedNames.length > 0 && !ownNames.some(name => wantedNames.includes(name)))
    return false
  // A chain such as 3 + 4 = 7 must be right itself, so that listing numbers does not pay.
  const pairs = [
    ...left.values.map(value => [value, right.values[0]!]),
    ...right.values.slice(1).map(value => [left.values[0]!, value]),
  ]
  return pairs.every(([x, y]) => isEqual(x!, y!, budget))
}

/** x ≈ 1.4 as x = 1.4 */
function asEquation(node: Node): Node {
  const isNamed = node.type === 'relation' && node.signs[0] === '~' && node.items[0]!.type === 'variable'
  return isNamed ? { ...node, signs: node.signs.with(0, '=') } : node
}

/** What stands behind ≈ is near what stands before it: so that 5 ≈ 7 is not 5. */
function isRightlyRounded(node: Node, budget: Budget): boolean {
  const at = node.type === 'relation' ? node.signs.indexOf('~') : -1
  if (node.type !== 'relation' || at < 0) return true
  const [exact, ...rounded] = node.items.slice(at)
  return rounded.every(value => isEqual(value, exact!, budget) || isNear(value, exact!, budget))
}

/** By less than 1 in the last digit that is shown, perhaps without its unit or percent sign. */
function isNear(rounded: Node, exact: Node, budget: Budget): boolean {
  const amount = (node: Node) => (node.type === 'quantity' ? node.item : node)
  const [value, other] = [amount(rounded), amount(exact)]
  const step = lastDigit(value)
  if (!step) return false
  const isWithin = (x: Node, y: Node, limit: Node) => {
    const difference: Node = { type: 'sum', items: [x, { type: 'minus', item: y }] }
    return (
      order(difference, limit, budget) < 0 && order({ type: 'minus', item: limit }, difference, budget) < 0
    )
  }
  const bare = (node: Node) => unmarked(unmarked(node, 'percent'), 'degrees')
  return isWithin(value, other, step) || isWithin(bare(value), bare(other), bare(step))
}

/** 1 in the last place of a decimal, also with a sign, a mark or factors behind it: 3.14 × 10^20, 2.1π. */
function lastDigit(node: Node): Node | undefined {
  if (node.type === 'number') {
    let one = 1n
    while (one % node.value.denominator !== 0n) {
      one *= 10n
      if (one > 10n ** BigInt(node.digits)) return undefined
    }
    return { ...node, value: { numerator: 1n, denominator: one } }
  }
  if (node.type === 'minus') return lastDigit(node.item)
  if (node.type === 'percent' || node.type === 'degrees') {
    const item = lastDigit(node.item)
    return item && { type: node.type, item }
  }
  if (node.type !== 'product') return undefined
  const [first, ...rest] = node.items
  const step = lastDigit(first!)
  return step && { type: 'product', items: [step, ...rest] }
}

function isRelation(node: Node): boolean {
  return node.type === 'relation'
}

/** The value of p + q = 19 or \frac{dy}{dx} = 2x. */
function expressionValue(node: Node): Node | undefined {
  if (node.type !== 'relation' || String(node.signs) !== '=') return undefined
  const [name, value] = node.items as [Node, Node]
  const isConstant = !some(value, part => part.type === 'variable')
  return isFunctionName(name) || (isConstant && isExpressionName(name)) ? value : undefined
}

function isInequality(node: Node): node is NodeOf<'relation'> {
  return node.type === 'relation' && node.signs.some(sign => sign !== '=' && sign !== '~')
}

/** Of inequalities that are not solved for a variable: side by side. */
function compareInequalities(a: NodeOf<'relation'>, b: NodeOf<'relation'>, budget: Budget): boolean {
  const [left, right] = [upward(a), upward(b)]
  return String(left.signs) === String(right.signs) && haveEqualItems(left.items, right.items, budget)
}

/** a > b as b < a. */
function upward({ signs, items }: NodeOf<'relation'>): Pick<NodeOf<'relation'>, 'signs' | 'items'> {
  if (!signs.every(sign => sign.startsWith('>'))) return { signs, items }
  return { signs: signs.map(sign => (sign === '>' ? '<' : '<=')).reverse(), items: items.toReversed() }
}

function isPlainEquation(node: Node): node is NodeOf<'relation'> {
  return node.type === 'relation' && node.signs.length === 1 && node.signs[0] === '='
}

function differenceOf({ items }: NodeOf<'relation'>): Node | undefined {
  if (items.some(isCollection)) return undefined
  return { type: 'sum', items: [items[0]!, { type: 'minus', item: items[1]! }] }
}

function attempt(body: () => boolean, budget: Budget): boolean {
  try {
    return body()
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error
    budget.spend(0)
    return false
  }
}

/** The values of x = 10, y = 3, where the names differ. */
function namedTuple(node: Node): NodeOf<'brackets'> | undefined {
  if (node.type !== 'list' || node.connector === 'or' || node.items.length < 2) return undefined
  const named = node.items.map(item => (isPlainEquation(item) ? namedValues(item) : undefined))
  const names = named.map(item => (item?.names[0] ? wordOf(item.names[0]) : undefined))
  if (names.includes(undefined) || new Set(names).size < names.length) return undefined
  return { type: 'brackets', open: '(', close: ')', items: named.map(item => item!.values[0]!) }
}

function itemsOf(node: Node): readonly Node[] {
  if (node.type === 'list') {
    // x = 1, -2
    const [first, ...rest] = node.items
    const isNamedOnce = first?.type === 'relation' && rest.every(item => item.type !== 'relation')
    return isNamedOnce && isPlainEquation(first) ? [namedValues(first).values[0]!, ...rest] : node.items
  }
  if (node.type === 'brackets' && node.open === '\\{') return node.items
  // x = 1 ± √2, expanded
  return [node]
}

/** In any order; a set in braces may repeat its elements. */
function compareLists(a: Node, b: Node, budget: Budget): boolean {
  // x = 3 and y = 4 for (3, 4)
  const [tupleA, tupleB] = [namedTuple(a), namedTuple(b)]
  if (tupleA && b.type === 'brackets' && b.open === '(') return haveEqualItems(tupleA.items, b.items, budget)
  if (tupleB && a.type === 'brackets' && a.open === '(') return haveEqualItems(a.items, tupleB.items, budget)
  // (1, 2) without its brackets, in the same order.
  for (const [list, tuple] of [
    [a, b],
    [b, a],
  ] as const) {
    if (list.type === 'list' && tuple.type === 'brackets' && tuple.open === '(' && tuple.items.length > 1) {
      const isPlain = list.connector === ',' && !list.items.some(item => item.type === 'brackets')
      return isPlain && haveEqualItems(list.items, tuple.items, budget)
    }
  }
  return haveSameItems(itemsOf(a), itemsOf(b), budget)
}

function haveSameItems(a: readonly Node[], b: readonly Node[], budget: Budget): boolean {
  if (a.length !== b.length) return false
  const left = [...b]
  return a.every(item => {
    const found = left.findIndex(candidate => attempt(() => isEqual(item, candidate, budget), budget))
    if (found >= 0) left.splice(found, 1)
    return found >= 0
  })
}

function haveEqualItems(a: readonly Node[], b: readonly Node[], budget: Budget): boolean {
  return a.length === b.length && a.every((item, i) => isEqual(item, b[i]!, budget))
}

function isCollection(node: Node): boolean {
  return node.type === 'brackets' || asMatrix(node) !== undefined || isSetLike(node)
}

function compareCollections(a: Node, b: Node, budget: Budget): boolean {
  if (isSetLike(a) || isSetLike(b)) {
    if (a.type !== 'brackets' || b.type !== 'brackets') return false
  }
  const [matrixA, matrixB] = [asMatrix(a), asMatrix(b)]
  if (matrixA && matrixB) {
    return (
      matrixA.length === matrixB.length && matrixA.every((row, i) => haveEqualItems(row, matrixB[i]!, budget))
    )
  }
  // A vector as a tuple.
  if (matrixA) return isVector(matrixA) && isTuple(b) && haveEqualItems(matrixA.flat(), b.items, budget)
  if (matrixB) return isVector(matrixB) && isTuple(a) && haveEqualItems(a.items, matrixB.flat(), budget)
  if (a.type === 'brackets' && b.type === 'brackets') {
    if (a.open !== b.open || a.close !== b.close) return false
    return a.open === '\\{' ? areSameFiniteSets(a, b, budget) : haveEqualItems(a.items, b.items, budget)
  }
  // {x} is x.
  const [single, other] = a.type === 'brackets' ? [a, b] : [b, a]
  if (single.type === 'brackets' && single.open === '\\{' && single.items.length === 1) {
    return single === a ? isEqual(single.items[0]!, other, budget) : isEqual(other, single.items[0]!, budget)
  }
  return false
}

function areSameFiniteSets(a: NodeOf<'brackets'>, b: NodeOf<'brackets'>, budget: Budget): boolean {
  const has = (items: readonly Node[], wanted: Node) =>
    items.some(item => attempt(() => isEqual(item, wanted, budget), budget))
  return a.items.every(item => has(b.items, item)) && b.items.every(item => has(a.items, item))
}

function isTuple(node: Node): node is NodeOf<'brackets'> {
  return node.type === 'brackets' && node.open === '(' && node.close === ')'
}

function isVector(rows: readonly (readonly Node[])[]): boolean {
  return rows.length === 1 || rows[0]!.length === 1
}

/** A matrix, or a number times or over one, by its entries. */
function asMatrix(node: Node): readonly (readonly Node[])[] | undefined {
  if (node.type === 'matrix') return node.rows
  const scale = (matrix: readonly (readonly Node[])[] | undefined, change: (entry: Node) => Node) =>
    matrix?.map(row => row.map(change))
  if (node.type === 'minus') return scale(asMatrix(node.item), item => ({ type: 'minus', item }))
  if (node.type === 'quotient') {
    return scale(asMatrix(node.left), left => ({ type: 'quotient', left, right: node.right }))
  }
  if (node.type !== 'product') return undefined
  const matrices = node.items.map(asMatrix)
  const at = matrices.findIndex(matrix => matrix !== undefined)
  if (at < 0 || matrices.filter(matrix => matrix !== undefined).length > 1) return undefined
  return scale(matrices[at], entry => ({ type: 'product', items: [...node.items.toSpliced(at, 1), entry] }))
}

/** Values, each with a unit, a degree or percent sign, a base, or none. */
function compareQuantities(a: Node, b: Node, budget: Budget): boolean {
  if (a.type === 'quantity' || b.type === 'quantity') return compareUnits(a, b, budget)
  if (a.type === 'ratio' && b.type === 'ratio') return compareRatios(a, b, budget)
  for (const mark of ['degrees', 'percent'] as const) {
    const [hasA, hasB] = [isMarked(a, mark), isMarked(b, mark)]
    // 60 for 60°, 50 for 50 %; but 0.5 % for 0.5 is another value.
    const mayDiffer = hasB || mark === 'degrees' || !isBelowOne(b, budget)
    if (
      hasA !== hasB &&
      mayDiffer &&
      attempt(() => haveSameValue(unmarked(a, mark), unmarked(b, mark), budget), budget)
    )
      return true
  }
  if (isMarked(a, 'based') !== isMarked(b, 'based')) return isSameButForBase(a, b)
  return haveSameValue(a, b, budget)
}

/**
 * The base left out, as a unit may be: 12 for 12_8, and 12_8 for the 12 of a problem that names the base. The same
 * number in base ten is not what was asked for: "Convert 1230_4 to base 10" would be its own answer.
 */
function isSameButForBase(a: Node, b: Node): boolean {
  if (a.type === 'minus' && b.type === 'minus') return isSameButForBase(a.item, b.item)
  const [based, other] = a.type === 'based' ? [a, b] : [b, a]
  return (
    based.type === 'based' &&
    other.type === 'number' &&
    other.value.denominator === 1n &&
    based.places === 0 &&
    String(other.value.numerator) === based.digits
  )
}

function isBelowOne(node: Node, budget: Budget): boolean {
  return attempt(() => {
    const value = exactValue(node, budget)
    return value !== undefined && value.numerator < value.denominator && value.numerator > -value.denominator
  }, budget)
}

/** Outside of functions, whose angles count as they are. */
function isMarked(node: Node, mark: 'degrees' | 'percent' | 'based'): boolean {
  return node.type === mark || (node.type !== 'call' && partsOf(node).some(part => isMarked(part, mark)))
}

function unmarked(node: Node, mark: 'degrees' | 'percent'): Node {
  if (node.type === mark) return unmarked(node.item, mark)
  return node.type === 'call' ? node : mapParts(node, part => unmarked(part, mark))
}

function compareRatios(a: NodeOf<'ratio'>, b: NodeOf<'ratio'>, budget: Budget): boolean {
  if (a.items.length !== b.items.length) return false
  const areTimes =
    a.kind === 'time' || b.kind === 'time' || (a.kind === 'time or ratio' && b.kind === 'time or ratio')
  if (areTimes) return haveEqualItems(a.items, b.items, budget)
  const product = (x: Node, y: Node): Node => ({ type: 'product', items: [x, y] })
  return a.items.every((item, i) =>
    haveSameValue(product(item, b.items[0]!), product(b.items[i]!, a.items[0]!), budget),
  )
}

/** A unit may be left out; two must agree, or be measures of the same thing. */
function compareUnits(a: Node, b: Node, budget: Budget): boolean {
  const parts = (node: Node) =>
    node.type === 'quantity'
      ? { item: node.item, unit: readUnit(node.unit, budget) }
      : { item: node, unit: undefined }
  const [left, right] = [parts(a), parts(b)]
  const isClock = [left, right].some(
    ({ unit }) => unit && ('am' in unit.dimensions || 'pm' in unit.dimensions),
  )
  const [x, y] = isClock ? [hoursOf(left.item), hoursOf(right.item)] : [left.item, right.item]
  if (left.unit && right.unit) {
    const areKnown = isKnown(left.unit) && isKnown(right.unit)
    if (areKnown) {
      if (!haveSameDimensions(left.unit, right.unit)) return false
      const times = (item: Node, { factor }: { factor: NodeOf<'number'>['value'] }): Node => ({
        type: 'product',
        items: [item, { type: 'number', value: factor, digits: 1 }],
      })
      return isEqual(times(x, left.unit), times(y, right.unit), budget)
    }
    const [some, all] = [left.unit.words, right.unit.words].toSorted((p, q) => p.length - q.length)
    if (isKnown(left.unit) !== isKnown(right.unit) || !some!.every(word => all!.includes(word))) return false
    return isEqual(x, y, budget)
  }
  const unmeasured = left.unit ? y : x
  if (unmeasured.type === 'degrees' || unmeasured.type === 'percent' || unmeasured.type === 'based')
    return false
  if (isEqual(x, y, budget)) return true
  // "17 m" without \text reads as 17 · m.
  const [bare, unit] = left.unit ? [y, left.unit] : [x, right.unit!]
  const split = splitUnit(bare)
  if (!split || !isKnown(unit)) return false
  const quantity: Node = { type: 'quantity', item: split.item, unit: split.unit }
  return left.unit ? compareUnits(a, quantity, budget) : compareUnits(quantity, b, budget)
}

/** 9:30 as hours. */
function hoursOf(node: Node): Node {
  if (node.type !== 'ratio') return node
  const items = node.items.map((item, i): Node => {
    const right: Node = { type: 'number', value: { numerator: 60n ** BigInt(i), denominator: 1n }, digits: 4 }
    return { type: 'quotient', left: item, right }
  })
  return { type: 'sum', items }
}

/** 17 · m, where the letters are a unit's. */
function splitUnit(node: Node): { item: Node; unit: string } | undefined {
  if (node.type !== 'product') return undefined
  const at = node.items.findIndex((item, i) => i > 0 && unitLetters(item) !== undefined)
  if (at < 0) return undefined
  const unit = node.items.slice(at).map(unitLetters)
  if (unit.includes(undefined)) return undefined
  const items = node.items.slice(0, at)
  return { item: items.length === 1 ? items[0]! : { type: 'product', items }, unit: unit.join('') }
}

function unitLetters(node: Node): string | undefined {
  if (node.type === 'variable') return node.name
  if (node.type !== 'power' || node.left.type !== 'variable' || node.right.type !== 'number') return undefined
  return `${node.left.name}^${node.right.value.numerator}`
}
