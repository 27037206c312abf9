/** Equations, chains and names: which of them stand for a value, and which equations are equal. */
import { compareLists, isCollection, isTuple } from './collections.js'
import { exactValue } from './evaluate.js'
import { haveSameSides } from './inequalities.js'
import { attempt, haveEqualItems, type Judge } from './judge.js'
import { unmarked } from './quantities.js'
import { isNear } from './tolerance.js'
import { differenceOf, isSameTree, type Node, type NodeOf, namesIn, quotientOf, some } from './tree.js'
import { areProportional } from './value.js'

/** a belongs to the answer, b to the reference. At least one is a relation. */
export function compareRelations(answer: Node, reference: Node, judge: Judge): boolean {
  const [a, b] = [asEquation(answer), asEquation(reference)]
  // x = 10, y = 3 for (10, 3)
  const [tupleA, tupleB] = [namedTuple(a), namedTuple(b)]
  const [valueA, valueB] = [tupleA ?? vectorOf(a), tupleB ?? vectorOf(b)]
  if ((tupleA && valueB && !tupleB) || (tupleB && valueA && !tupleA)) return judge.isEqual(valueA!, valueB!)
  if (a.type === 'list' || b.type === 'list') return compareLists(a, b, judge)
  const ordered = [a, b].map(node => (isOrdered(node) ? node : undefined))
  if (ordered[0] || ordered[1])
    return (
      ordered[0] !== undefined && ordered[1] !== undefined && compareOrdered(ordered[0], ordered[1], judge)
    )
  if (!isRightlyRounded(a, judge) || !isRightlyRounded(b, judge)) return false
  if (a.type === 'relation' && b.type === 'relation') return compareEquations(a, b, judge)
  // The answer p + q = 19 names the value that is asked for. The answer 19 says nothing about the reference p + q = 19.
  const isGiven = a.type === 'relation'
  const { values } = namedValues((isGiven ? a : b) as NodeOf<'relation'>, isGiven)
  return values.every(value => (isGiven ? judge.isEqual(value, b) : judge.isEqual(a, value)))
}

/** An implication or an inequality, but not = and ≈. */
function isOrdered(node: Node): node is NodeOf<'relation'> {
  return node.type === 'relation' && node.signs.some(sign => sign !== '=' && sign !== '~')
}

function compareOrdered(a: NodeOf<'relation'>, b: NodeOf<'relation'>, judge: Judge): boolean {
  if (haveSameSides(a, b, judge.budget)) return true
  if (String(a.signs) !== String(b.signs)) return false
  const isSymmetric = /^(?:↔|!=)$/.test(String(a.signs))
  return (
    haveEqualItems(a.items, b.items, judge) ||
    (isSymmetric && haveEqualItems(a.items.toReversed(), b.items, judge))
  )
}

/**
 * These are equal: equations with the same unknowns that differ by a factor; chains of constants with the same value; the same
 * name with the same value. An equation that holds for all values is equal only to the same equation, side by side.
 */
function compareEquations(a: NodeOf<'relation'>, b: NodeOf<'relation'>, judge: Judge): boolean {
  const { budget } = judge
  if (isPlain(a) && isPlain(b)) {
    const [f, g] = [a, b].map(({ items }) => differenceOf(items[0]!, items[1]!)) as [Node, Node]
    if (attempt(() => areProportional(f, g, budget), budget)) return true
    const areSameSides = (items: readonly Node[]) =>
      [a, b].every(hasNames) && attempt(() => haveEqualItems(items, b.items, judge), budget)
    if (areSameSides(a.items) || areSameSides(a.items.toReversed())) return true
  }
  const [own, wanted] = [namedValues(a, false), namedValues(b, false)]
  if (!mayBeSameNames(own.names, wanted.names, judge)) return false
  if ([own, wanted].some(({ names, values }) => names.length === 0 && values.some(hasNames))) return false
  // A chain such as 3 + 4 = 7 must itself be right, so that listing numbers does not pay.
  return (
    own.values.every(value => judge.isEqual(value, wanted.values[0]!)) &&
    wanted.values.slice(1).every(value => judge.isEqual(own.values[0]!, value))
  )
}

function isPlain({ signs, items }: NodeOf<'relation'>): boolean {
  return String(signs) === '=' && !items.some(isCollection)
}

function hasNames(node: Node): boolean {
  return some(node, ({ type }) => type === 'variable' || type === 'apply' || type === 'bound')
}

function mayBeSameNames(a: readonly Node[], b: readonly Node[], { budget }: Judge): boolean {
  if (a.length === 0 || b.length === 0) return true
  const isPair = (x: Node, y: Node) => {
    if (x.type === 'variable' && y.type === 'variable') return segment(x.name) === segment(y.name)
    // f(x) = 2x for y = 2x, but not P(A) = ½ for P(B) = ½.
    return x.type !== y.type || isSameTree(x, y, budget)
  }
  return a.some(x => b.some(y => isPair(x, y)))
}

/** BA is the segment AB. */
function segment(name: string): string {
  return /^[A-Z]{2}$/.test(name) ? [...name].sort().join('') : name
}

/** The name in an equation, and the values behind it, all of which must agree. */
function namedValues(
  { signs, items: all }: NodeOf<'relation'>,
  mayBeExpression: boolean,
): { names: readonly Node[]; values: readonly Node[] } {
  const cut = signs.indexOf('~')
  const items = cut < 0 ? all : all.slice(0, cut + 1)
  const [first, ...rest] = items
  if (mayBeExpression && rest.length > 0 && isExpressionName(first!) && !rest.some(hasNames))
    return { names: [first!], values: rest }
  const isNamedLast = items.length === 2 && isName(items[1]!) && !isName(items[0]!)
  if (isNamedLast) return { names: [items[1]!], values: [items[0]!] }
  let count = 0
  while (count < items.length - 1 && isName(items[count]!)) count++
  return { names: items.slice(0, count), values: items.slice(count) }
}

/** A name for a computed value: x, f(x), AB, (a, b), P(A), dy/dx. */
export function isName(node: Node): boolean {
  switch (node.type) {
    case 'variable':
    case 'text':
      return true
    case 'constant':
      return node.name === 'e' || node.name === 'i'
    case 'brackets':
      return node.open === '(' && node.items.every(isName)
    case 'ratio':
      return node.items.every(isName)
    case 'apply':
      return node.items.every(item => isName(item) || item.type === 'number' || item.type === 'relation')
    case 'product': {
      const [first, ...rest] = node.items
      return first!.type === 'variable' && rest.every(item => isName(item) || item.type === 'number')
    }
    default:
      return false
  }
}

/**
 * A value that is asked for by more than a name: p + q, ab, cos θ, |AB|. Not expressions that are to be solved for x (2x, x²,
 * |x|), and not the equation of a line or plane (2x + z).
 */
function isExpressionName(node: Node): boolean {
  if (node.type === 'bound') return true
  if (node.type === 'power') return isCapital(node.left) && ['minus', 'variable'].includes(node.right.type)
  if (node.type === 'call') {
    if (/^(?:det|determinant|max|min|Re|Im|arg|norm)$/.test(node.name)) return true
    const [inner] = node.items
    if (node.name === 'abs' && inner?.type === 'variable' && (inner.isVector || /^[zw]$/.test(inner.name)))
      return true
  }
  const names = [...namesIn(node)]
  const isAngle = node.type === 'call' && /^(?:sin|cos|tan|cot|sec|csc)$/.test(node.name)
  const letters = names.reduce(
    (sum, name) => sum + (/^[A-Z]{2,}$|^\\(?:gcd|lcm|max|min|det)$/.test(name) ? 2 : 1),
    0,
  )
  // x + 1/x
  const isReciprocal = node.type === 'sum' && node.items.some(part => some(part, isOverName))
  if (letters < (isAngle || isReciprocal ? 1 : 2)) return false
  const hasCoordinates = names.some(name => /^[xyz]$/.test(name))
  return !(hasCoordinates && some(node, part => part.type === 'product' && part.items.some(isFactorOfMany)))
}

function isCapital(node: Node): boolean {
  return node.type === 'variable' && /^[A-Z]$/.test(node.name)
}

function isOverName(node: Node): boolean {
  return node.type === 'quotient' && namesIn(node.right).size > 0
}

function isFactorOfMany(node: Node): boolean {
  return node.type === 'number' || node.type === 'quotient'
}

/** x ≈ 1.4 as x = 1.4 */
function asEquation(node: Node): Node {
  const isNamed = node.type === 'relation' && node.signs[0] === '~' && node.items[0]!.type === 'variable'
  return isNamed ? { ...node, signs: node.signs.with(0, '=') } : node
}

/** The value behind ≈ must be near the value before it, so that 5 ≈ 7 is not 5. */
function isRightlyRounded(node: Node, judge: Judge): boolean {
  const at = node.type === 'relation' ? node.signs.indexOf('~') : -1
  if (node.type !== 'relation' || at < 0) return true
  const [exact, ...rounded] = node.items.slice(at)
  return rounded.every(value => judge.isEqual(value, exact!) || isNearAmount(value, exact!, judge))
}

/** Compares values, also without their unit or percent sign. */
function isNearAmount(rounded: Node, exact: Node, judge: Judge): boolean {
  const amount = (node: Node) => (node.type === 'quantity' ? node.item : node)
  const bare = (node: Node) => unmarked(unmarked(node, 'percent'), 'degrees')
  const [value, other] = [amount(rounded), amount(exact)]
  return isNear(value, other, judge) || isNear(bare(value), bare(other), judge)
}

/** The values of x = 10, y = 3 in the order of the names, if the names differ. */
function namedTuple(node: Node): NodeOf<'brackets'> | undefined {
  if (node.type !== 'list' || node.connector === 'or' || node.connector === '∨' || node.items.length < 2)
    return undefined
  const named = node.items.map(item => {
    const isNamed =
      item.type === 'relation' && String(item.signs) === '=' && item.items[0]!.type === 'variable'
    return isNamed ? { name: (item.items[0] as NodeOf<'variable'>).name, value: item.items[1]! } : undefined
  })
  const pairs = named.flatMap(pair => pair ?? [])
  if (pairs.length < named.length || new Set(pairs.map(({ name }) => name)).size < named.length)
    return undefined
  const items = pairs.toSorted((x, y) => (x.name < y.name ? -1 : 1)).map(({ value }) => value)
  return { type: 'brackets', open: '(', close: ')', items }
}

/** A tuple or vector, also behind its name: (x, y) = (1, 2). */
function vectorOf(node: Node): Node | undefined {
  if (isTuple(node) || node.type === 'matrix') return node
  const isNamed = node.type === 'relation' && String(node.signs) === '=' && isName(node.items[0]!)
  return isNamed ? vectorOf(node.items[1]!) : undefined
}

/** A residue with its modulus; the modulus may be left out. */
export function compareCongruences(a: Node, b: Node, judge: Judge): boolean {
  if (a.type !== 'congruence') return b.type === 'congruence' && judge.isEqual(a, b.left)
  if (b.type !== 'congruence') return judge.isEqual(a.left, b)
  if (!judge.isEqual(a.right, b.right)) return false
  const [x, y] = [a.left, b.left].map(sidesOf) as [Sides, Sides]
  if (x.name && y.name && !judge.isEqual(x.name, y.name)) return false
  return isDivisible(differenceOf(x.value, y.value), b.right, judge)
}

interface Sides {
  readonly name: Node | undefined
  readonly value: Node
}

function sidesOf(node: Node): Sides {
  return node.type === 'relation' && node.items.length === 2
    ? { name: node.items[0], value: node.items[1]! }
    : { name: undefined, value: node }
}

function isDivisible(value: Node, by: Node, { budget }: Judge): boolean {
  return exactValue(quotientOf(value, by), budget)?.denominator === 1n
}
