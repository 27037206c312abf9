/** Compares two answers that were read as trees: first by their structure, then by the values in it. */
import type { Budget } from './budget.js'
import { compareCollections, compareLists, isCollection } from './collections.js'
import { compareFamilies, hasFamily } from './families.js'
import { type Judge, type Tolerance, unlessUnreadable } from './judge.js'
import { compareQuantities } from './quantities.js'
import { compareCongruences, compareRelations } from './relations.js'
import { areSameSets, isSetLike, toSet } from './sets.js'
import { wordOf } from './texts.js'
import { type Node, namesIn } from './tree.js'

export function createJudge(budget: Budget, tolerance: Tolerance | undefined): Judge {
  const judge: Judge = { budget, tolerance, isEqual: (a, b) => isEqual(a, b, judge) }
  return judge
}

function isEqual(a: Node, b: Node, judge: Judge): boolean {
  judge.budget.spend(5)
  const isText = a.type === 'text' || b.type === 'text'
  if (isText && a.type !== 'relation' && b.type !== 'relation') {
    const [word, wanted] = [wordOf(a), wordOf(b)]
    return word !== undefined && word === wanted
  }
  if (a.type === 'congruence' || b.type === 'congruence') return compareCongruences(a, b, judge)
  if (hasFamily(a) || hasFamily(b)) return compareFamilies(a, b, judge)
  if (isSetLike(a) || isSetLike(b)) {
    const verdict = areSameVariables(a, b) ? compareSets(a, b, judge) : false
    if (verdict !== undefined) return verdict
  }
  if (a.type === 'relation' || b.type === 'relation') return compareRelations(a, b, judge)
  if (a.type === 'list' || b.type === 'list') {
    if ([a, b].some(node => node.type === 'list' && node.items.some(({ type }) => type === 'relation')))
      return compareRelations(a, b, judge)
    return compareLists(a, b, judge)
  }
  if (isCollection(a) || isCollection(b)) return compareCollections(a, b, judge)
  return compareQuantities(a, b, judge)
}

/** undefined if one of the two is not a set of real numbers. */
function compareSets(a: Node, b: Node, { budget }: Judge): boolean | undefined {
  return unlessUnreadable(() => areSameSets(toSet(a, budget), toSet(b, budget), budget), budget)
}

/** x > 3 and y > 3 differ, but (3, ∞) has no name that could differ. */
function areSameVariables(a: Node, b: Node): boolean {
  const [own, wanted] = [unknownsOf(a), unknownsOf(b)]
  return own.length !== 1 || wanted.length !== 1 || own[0] === wanted[0]
}

function unknownsOf(node: Node): string[] {
  if (node.type === 'list') return [...new Set(node.items.flatMap(unknownsOf))]
  return node.type === 'relation' ? [...new Set(node.items.flatMap(item => [...namesIn(item)]))] : []
}
