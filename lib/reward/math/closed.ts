/** Computes finite closed forms: sums, products, determinants, arithmetic of vectors and matrices, gcd, floor … */
import { type Budget, Unreadable } from './budget.js'
import { exactValue, folded } from './evaluate.js'
import { unlessUnreadable } from './judge.js'
import {
  differenceOf,
  integer,
  mapParts,
  type Node,
  type NodeOf,
  negative,
  productOf,
  quotientOf,
  some,
  substitute,
  sumOf,
} from './tree.js'
import { floorOf, order } from './value.js'

/** Largest number of terms of a sum or product. */
const MAX_TERMS = 300
/** Largest size of a matrix whose determinant, inverse or power is computed. */
const MAX_ROWS = 4
const MAX_POWER = 12n

type Rows = readonly (readonly Node[])[]

/** The expression with all finite parts computed. Throws Unreadable. */
export function workOut(node: Node, budget: Budget): Node {
  budget.spend(1)
  if (node.type === 'bound') {
    const expanded = expandBound(node, budget)
    return expanded ? workOut(expanded, budget) : mapParts(node, part => workOut(part, budget))
  }
  const changed = mapParts(node, part => workOut(part, budget))
  switch (changed.type) {
    case 'call':
      return callOf(changed, budget) ?? changed
    case 'sum':
    case 'product':
    case 'quotient':
    case 'power':
    case 'minus':
    case 'apply':
      return some(changed, isArray) ? (arrayOf(changed, budget) ?? changed) : (inBasis(changed) ?? changed)
    default:
      return changed
  }
}

/** \sum_{k=1}^{5} k^2 as 1 + 4 + 9 + 16 + 25. */
function expandBound({ kind, variable, items }: NodeOf<'bound'>, budget: Budget): Node | undefined {
  const [body, from, to] = items
  if ((kind !== 'sum' && kind !== 'prod') || !from || !to) return undefined
  const [low, high] = [wholeNumber(workOut(from, budget), budget), wholeNumber(workOut(to, budget), budget)]
  if (low === undefined || high === undefined) return undefined
  if (high < low) return integer(kind === 'sum' ? 0 : 1)
  if (high - low >= MAX_TERMS)
    throw new Unreadable(`a ${kind === 'sum' ? 'sum' : 'product'} of too many terms`)
  budget.spend(Number(high - low))
  const terms = Array.from({ length: Number(high - low) + 1 }, (_, i) =>
    substitute(body!, variable, integer(low + BigInt(i))),
  )
  return kind === 'sum' ? sumOf(...terms) : productOf(...terms)
}

function wholeNumber(node: Node, budget: Budget): bigint | undefined {
  const value = unlessUnreadable(() => exactValue(node, budget), budget)
  return value?.denominator === 1n ? value.numerator : undefined
}

function callOf({ name, items }: NodeOf<'call'>, budget: Budget): Node | undefined {
  const [first, second] = items
  switch (name) {
    case 'floor':
    case 'ceil': {
      if (isVariable(first!)) return undefined
      return unlessUnreadable(
        () =>
          name === 'floor' ? integer(floorOf(first!, budget)) : integer(-floorOf(negative(first!), budget)),
        budget,
      )
    }
    case 'gcd':
    case 'lcm': {
      const values = itemsOf(items).map(item => wholeNumber(item, budget))
      if (values.length < 2 || values.some(value => value === undefined)) return undefined
      const sizes = values.map(value => (value! < 0n ? -value! : value!))
      budget.spend(sizes.length * 4)
      return integer(sizes.reduce((x, y) => (name === 'gcd' ? gcd(x, y) : x && y ? (x / gcd(x, y)) * y : 0n)))
    }
    case 'max':
    case 'min': {
      const values = itemsOf(items)
      if (values.some(isVariable)) return undefined
      const sign = name === 'max' ? 1 : -1
      return unlessUnreadable(
        () => values.reduce((x, y) => (order(x, y, budget) * sign >= 0 ? x : y)),
        budget,
      )
    }
    case 'mod': {
      const [value, modulus] = [wholeNumber(first!, budget), second && wholeNumber(second, budget)]
      if (value === undefined || !modulus || modulus < 0n) return undefined
      return integer(((value % modulus) + modulus) % modulus)
    }
    case 'permutations': {
      const [n, k] = [wholeNumber(first!, budget), second && wholeNumber(second, budget)]
      if (n === undefined || k === undefined || k < 0n || k > n || k > MAX_TERMS) return undefined
      return productOf(integer(1), ...Array.from({ length: Number(k) }, (_, i) => integer(n - BigInt(i))))
    }
    case 'double factorial': {
      const n = wholeNumber(first!, budget)
      if (n === undefined || n < 0n || n > 2 * MAX_TERMS) return undefined
      const factors = [integer(1)]
      for (let k = n; k > 1n; k -= 2n) factors.push(integer(k))
      return productOf(...factors)
    }
    case 'norm':
    case 'abs': {
      const entries = first && vectorOf(first)
      if (entries) return rootOfSquares(entries)
      if (name === 'norm' && first && !isArray(first)) return { type: 'call', name: 'abs', items: [first] }
      return name === 'abs' && first?.type === 'matrix' ? determinant(first.rows, budget) : undefined
    }
    case 'det':
    case 'determinant':
      return first?.type === 'matrix' ? determinant(first.rows, budget) : undefined
    default:
      return undefined
  }
}

function isVariable(node: Node): boolean {
  return some(node, ({ type }) => type === 'variable' || type === 'apply' || type === 'bound')
}

/** max{1, 2} as max(1, 2). */
function itemsOf(items: readonly Node[]): readonly Node[] {
  const [only] = items
  return items.length === 1 && only?.type === 'brackets' ? only.items : items
}

function gcd(a: bigint, b: bigint): bigint {
  let [x, y] = [a, b]
  while (y) [x, y] = [y, x % y]
  return x
}

function isArray(node: Node): boolean {
  return node.type === 'matrix' || isTuple(node)
}

function isTuple(node: Node): node is NodeOf<'brackets'> {
  return node.type === 'brackets' && node.open === '(' && node.close === ')' && node.items.length > 1
}

/** The entries of a tuple, or of a matrix of one row or column. */
function vectorOf(node: Node): readonly Node[] | undefined {
  if (isTuple(node)) return node.items
  if (node.type !== 'matrix' || (node.rows.length > 1 && node.rows[0]!.length > 1)) return undefined
  return node.rows.flat()
}

function rootOfSquares(entries: readonly Node[]): Node {
  const squares = entries.map((item): Node => ({ type: 'power', left: item, right: integer(2) }))
  return { type: 'call', name: 'sqrt', items: [sumOf(...squares)] }
}

/** 2i + 3j, where the letters are vectors, as (2, 3). */
function inBasis(node: Node): Node | undefined {
  const terms = node.type === 'sum' ? node.items : []
  const entries = new Map<string, Node>()
  for (const term of terms) {
    const isNegative = term.type === 'minus'
    const inner = isNegative ? term.item : term
    const factors = inner.type === 'product' ? inner.items : [inner]
    const directions = factors.flatMap(factor => directionOf(factor) ?? [])
    const [direction] = directions
    if (directions.length !== 1 || entries.has(direction!)) return undefined
    const size = productOf(integer(1), ...factors.filter(factor => directionOf(factor) === undefined))
    entries.set(direction!, isNegative ? negative(size) : size)
  }
  if (entries.size < 2) return undefined
  const names = entries.has('k') ? ['i', 'j', 'k'] : ['i', 'j']
  return {
    type: 'brackets',
    open: '(',
    close: ')',
    items: names.map(name => entries.get(name) ?? integer(0)),
  }
}

/** \vec{i}, \hat{\jmath}, \mathbf{k} */
function directionOf(node: Node): string | undefined {
  if (node.type !== 'variable' || !node.isVector) return undefined
  return /^(?:\\\w+\()?(?:\\?([ij])(?:math)?|(k))\)?$/.exec(node.name)?.slice(1).find(Boolean)
}

/** The value of an expression with vectors or matrices; undefined if it has none that this module can compute. */
function arrayOf(node: Node, budget: Budget): Node | undefined {
  switch (node.type) {
    case 'minus':
      return isArray(node.item) ? mapEntries(node.item, negative) : undefined
    case 'quotient':
      return isArray(node.left) && !isArray(node.right)
        ? mapEntries(node.left, entry => quotientOf(entry, node.right))
        : undefined
    case 'sum':
      if (!node.items.every(isArray)) return undefined
      return reduceSum(node.items)
    case 'product':
      return productOfArrays(node.items, budget)
    case 'power':
      return node.left.type === 'matrix' ? powerOfMatrix(node.left.rows, node.right, budget) : undefined
    case 'apply': {
      const [a, b] = node.items.map(vectorOf)
      if (!a || !b || a.length !== b.length) return undefined
      if (node.name === '·') return sumOf(...a.map((x, i) => productOf(x, b[i]!)))
      if (node.name !== '×' || a.length !== 3) return undefined
      const entry = (i: number, j: number) => differenceOf(productOf(a[i]!, b[j]!), productOf(a[j]!, b[i]!))
      return { type: 'brackets', open: '(', close: ')', items: [entry(1, 2), entry(2, 0), entry(0, 1)] }
    }
    default:
      return undefined
  }
}

function reduceSum(items: readonly Node[]): Node | undefined {
  let total: Node | undefined = items[0]
  for (const item of items.slice(1)) total = total && added(total, item)
  return total
}

function mapEntries(node: Node, change: (entry: Node) => Node): Node {
  if (node.type === 'matrix') return { type: 'matrix', rows: node.rows.map(row => row.map(change)) }
  return mapParts(node, change)
}

function added(a: Node, b: Node): Node | undefined {
  const [x, y] = [a, b].map(node =>
    node.type === 'matrix' ? node.rows : isTuple(node) ? [node.items] : undefined,
  )
  if (!x || !y || a.type !== b.type) return undefined
  if (x.length !== y.length || x[0]!.length !== y[0]!.length) return undefined
  const rows = x.map((row, i) => row.map((entry, j) => sumOf(entry, y[i]![j]!)))
  return a.type === 'matrix'
    ? { type: 'matrix', rows }
    : { type: 'brackets', open: '(', close: ')', items: rows[0]! }
}

/** Numbers go into the entries; matrices are multiplied in their order. */
function productOfArrays(items: readonly Node[], budget: Budget): Node | undefined {
  const arrays = items.filter(isArray)
  const numbers = items.filter(item => !isArray(item))
  if (arrays.length === 0 || (arrays.length > 1 && arrays.some(item => item.type !== 'matrix')))
    return undefined
  let product: Node = arrays[0]!
  for (const next of arrays.slice(1)) {
    const rows = multiplied((product as NodeOf<'matrix'>).rows, (next as NodeOf<'matrix'>).rows, budget)
    if (!rows) return undefined
    product = { type: 'matrix', rows }
  }
  return numbers.length === 0 ? product : mapEntries(product, entry => productOf(...numbers, entry))
}

function multiplied(a: Rows, b: Rows, budget: Budget): Rows | undefined {
  if (a[0]!.length !== b.length) return undefined
  budget.spend(a.length * b.length * b[0]!.length)
  return a.map(row =>
    b[0]!.map((_, j) => folded(sumOf(...row.map((entry, k) => productOf(entry, b[k]![j]!))), budget)),
  )
}

function powerOfMatrix(rows: Rows, exponent: Node, budget: Budget): Node | undefined {
  if (exponent.type === 'variable' && /^(?:T|\\top)$/.test(exponent.name)) return transposed(rows)
  const n = wholeNumber(exponent, budget)
  if (n === undefined || rows.length !== rows[0]!.length || rows.length > MAX_ROWS) return undefined
  if (n === -1n) return inverse(rows, budget)
  if (n < 1n || n > MAX_POWER) return undefined
  let power: Rows | undefined = rows
  for (let k = 1n; k < n && power; k++) power = multiplied(power, rows, budget)
  return power && { type: 'matrix', rows: power }
}

function transposed(rows: Rows): Node {
  return { type: 'matrix', rows: rows[0]!.map((_, j) => rows.map(row => row[j]!)) }
}

function determinant(rows: Rows, budget: Budget): Node {
  if (rows.length !== rows[0]!.length || rows.length > MAX_ROWS)
    throw new Unreadable('a determinant that is not worked out')
  budget.spend(4 ** rows.length)
  if (rows.length === 1) return rows[0]![0]!
  return sumOf(
    ...rows[0]!.map((entry, j) => {
      const term = productOf(entry, determinant(minor(rows, 0, j), budget))
      return j % 2 === 0 ? term : negative(term)
    }),
  )
}

function minor(rows: Rows, i: number, j: number): Rows {
  return rows.toSpliced(i, 1).map(row => row.toSpliced(j, 1))
}

function inverse(rows: Rows, budget: Budget): Node {
  const whole = determinant(rows, budget)
  const entry = (i: number, j: number): Node => {
    const cofactor = rows.length === 1 ? integer(1) : determinant(minor(rows, j, i), budget)
    return quotientOf((i + j) % 2 === 0 ? cofactor : negative(cofactor), whole)
  }
  return { type: 'matrix', rows: rows.map((row, i) => row.map((_, j) => entry(i, j))) }
}
