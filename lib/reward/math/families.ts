/** The set of all values that an expression takes as k runs through the integers: π/6 + kπ, k ∈ ℤ. */
import { type Budget, Unreadable } from './budget.js'
import { exactValue } from './evaluate.js'
import { attempt, type Judge, unlessUnreadable } from './judge.js'
import {
  differenceOf,
  integer,
  mapParts,
  type Node,
  type NodeOf,
  namesIn,
  productOf,
  quotientOf,
  some,
  substitute,
  sumOf,
} from './tree.js'
import { floorOf, haveSameValue } from './value.js'

/** The values offset + period · k. */
interface Progression {
  readonly offset: Node
  readonly period: Node
}

/** A common period is not examined if it is more than this many times the smallest period. */
const MAX_STEPS = 24

/** A list with a clause such as k ∈ ℤ as the families of its other items. */
export function familiesOf(node: Node): Node {
  if (node.type === 'brackets' && node.open === '\\{') {
    const inner = familiesOf({ type: 'list', connector: ',', items: node.items })
    return inner.type === 'list' && inner.items === node.items ? node : inner
  }
  if (node.type !== 'list') return node
  const clauses = node.items.filter(isClause)
  const [clause] = clauses
  if (!clause || clauses.length > 1) return node
  const rest = node.items.filter(item => item !== clause)
  const name = clause.items[0] as NodeOf<'variable'>
  const domain = domainOf(clause.items[1]!)!
  // n ∈ ℕ by itself describes n and is not a clause.
  if (rest.length === 0 || !rest.some(item => namesIn(item).has(name.name))) return node
  const families = rest.map((item): Node => {
    if (!namesIn(item).has(name.name)) return item
    return {
      type: 'family',
      item: rightSide(item),
      parameter: name.name,
      domain,
    }
  })
  return families.length === 1 ? families[0]! : { type: 'list', connector: 'or', items: families }
}

function isClause(node: Node): node is NodeOf<'relation'> {
  if (node.type !== 'relation' || String(node.signs) !== 'in' || node.items[0]!.type !== 'variable')
    return false
  return domainOf(node.items[1]!) !== undefined
}

/** ℤ and ℕ, also written as letters. */
function domainOf(set: Node): NodeOf<'family'>['domain'] | undefined {
  if (set.type === 'variable')
    return set.name === 'Z' ? 'integers' : set.name === 'N' ? 'naturals' : undefined
  return set.type === 'constant' && (set.name === 'integers' || set.name === 'naturals')
    ? set.name
    : undefined
}

/** x = kπ as kπ. */
function rightSide(node: Node): Node {
  const isNamed = node.type === 'relation' && String(node.signs) === '=' && node.items[0]!.type === 'variable'
  return isNamed ? node.items[1]! : node
}

export function hasFamily(node: Node): boolean {
  return node.type === 'family' || (node.type === 'list' && node.items.some(item => item.type === 'family'))
}

export function compareFamilies(a: Node, b: Node, judge: Judge): boolean {
  const [left, right] = [a, b].map(node => (node.type === 'list' ? node.items : [node])) as [
    readonly Node[],
    readonly Node[],
  ]
  if (![...left, ...right].every(item => item.type === 'family')) return false
  const [own, wanted] = [left, right] as [readonly NodeOf<'family'>[], readonly NodeOf<'family'>[]]
  const [first, ...others] = [...own, ...wanted]
  if (others.some(({ domain }) => domain !== first!.domain)) return false
  if (own.length === 1 && wanted.length === 1 && areRenamed(own[0]!, wanted[0]!, judge)) return true
  if (first!.domain !== 'integers') return false
  const progressions = [own, wanted].map(families =>
    families.flatMap(family => progressionsOf(family, judge)),
  )
  return areSameSets(progressions[0]!, progressions[1]!, judge)
}

/** The same expression, apart from the name of the parameter. */
function areRenamed(a: NodeOf<'family'>, b: NodeOf<'family'>, judge: Judge): boolean {
  const name: Node = { type: 'variable', name: 'parameter' }
  return attempt(
    () => judge.isEqual(substitute(a.item, a.parameter, name), substitute(b.item, b.parameter, name)),
    judge.budget,
  )
}

/** offset + period · k; two of them where (−1)^k stands in it, and for ±. Throws Unreadable. */
function progressionsOf({ item, parameter }: NodeOf<'family'>, { budget }: Judge): Progression[] {
  if (some(item, part => isAlternating(part, parameter))) {
    const twice = productOf(integer(2), { type: 'variable', name: parameter })
    return [twice, sumOf(twice, integer(1))].flatMap((value, odd) => {
      const halved = substitute(withSign(item, parameter, odd, budget), parameter, value)
      return progressionsOf({ type: 'family', item: halved, parameter, domain: 'integers' }, {
        budget,
      } as Judge)
    })
  }
  const at = (k: number) => substitute(item, parameter, integer(k))
  const offset = at(0)
  const period = differenceOf(at(1), offset)
  const line = sumOf(offset, productOf(period, { type: 'variable', name: parameter }))
  if (!haveSameValue(item, line, budget)) throw new Unreadable('a family that is no progression')
  return [{ offset, period }]
}

/** (−1)^k, (−1)^{k+1} */
function isAlternating(node: Node, parameter: string): boolean {
  return (
    node.type === 'power' &&
    node.left.type === 'minus' &&
    node.left.item.type === 'number' &&
    node.left.item.value.numerator === 1n &&
    namesIn(node.right).has(parameter)
  )
}

function withSign(node: Node, parameter: string, odd: number, budget: Budget): Node {
  if (!isAlternating(node, parameter)) return mapParts(node, part => withSign(part, parameter, odd, budget))
  const { right } = node as NodeOf<'power'>
  const signs = [odd, odd + 2].map(k => {
    const exponent = exactValue(substitute(right, parameter, integer(k)), budget)
    if (exponent?.denominator !== 1n) throw new Unreadable('a power of −1 that is no sign')
    return exponent.numerator % 2n === 0n ? 1 : -1
  })
  if (signs[0] !== signs[1]) throw new Unreadable('a power of −1 that is no sign')
  return integer(signs[0]!)
}

/** Compares offsets modulo a common period: each must be among the other's. Throws Unreadable if there is no common period. */
function areSameSets(a: readonly Progression[], b: readonly Progression[], judge: Judge): boolean {
  const { budget } = judge
  const [first] = a
  const wholeNumberOf = (node: Node): bigint | undefined => {
    const near = unlessUnreadable(
      () => floorOf(sumOf(node, quotientOf(integer(1), integer(2))), budget),
      budget,
    )
    return near !== undefined && haveSameValue(node, integer(near), budget) ? near : undefined
  }
  // The smallest multiple of the first period that is a multiple of all periods.
  let common: Node | undefined
  for (let n = 1; n <= MAX_STEPS && !common; n++) {
    const candidate = productOf(integer(n), first!.period)
    const isCommon = [...a, ...b].every(
      ({ period }) => wholeNumberOf(quotientOf(candidate, period)) !== undefined,
    )
    if (isCommon) common = candidate
  }
  if (!common) return false
  const offsets = (set: readonly Progression[]) =>
    set.flatMap(({ offset, period }) => {
      const count = wholeNumberOf(quotientOf(common, period))!
      const size = Number(count < 0n ? -count : count)
      if (size > MAX_STEPS) throw new Unreadable('a family of too many parts')
      return Array.from({ length: size }, (_, i) => sumOf(offset, productOf(integer(i), period)))
    })
  const [left, right] = [offsets(a), offsets(b)]
  const areSame = (x: Node, y: Node) => wholeNumberOf(quotientOf(differenceOf(x, y), common)) !== undefined
  return left.every(x => right.some(y => areSame(x, y))) && right.every(y => left.some(x => areSame(x, y)))
}
