/** The readings of an answer's text. */
import { type Budget, Unreadable } from './budget.js'
import { workOut } from './closed.js'
import { lastFormula } from './extract.js'
import { familiesOf } from './families.js'
// A namespace: `rapo` loads the grammar when the first answer is read.
import * as grammar from './parse.js'
import { isName } from './relations.js'
import { MAX_ANSWER, type Reading } from './tokens.js'
import { mapParts, type Node, some } from './tree.js'
import { isDoubtful } from './words.js'

/** Largest number of ± in one answer; each doubles the number of values. */
const MAX_PLUS_MINUS = 4

/** The tree, or the reason why there is none. */
export function read(source: string, budget: Budget, reading?: Reading): Node | string {
  try {
    const text = source.length > MAX_ANSWER ? source : withoutLabels(withClause(source))
    return workOut(familiesOf(expand(spread(membersOf(grammar.parseAnswer(text, reading))))), budget)
  } catch (error) {
    if (error instanceof Unreadable) return error.reason
    throw error
  }
}

/**
 * A text that cannot be read as a whole is read by the choice that it names, or by the last formula between dollar signs in
 * prose.
 */
export function readAnyhow(source: string, budget: Budget): Node | string {
  const node = read(source, budget)
  if (typeof node !== 'string' || source.length > MAX_ANSWER) return node
  const { letter } = choiceOf(source) ?? {}
  if (letter) return { type: 'variable', name: letter }
  const formula = lastFormula(source)
  if (!formula || formula.text.trim() === source.trim() || isDoubtful(formula.around)) return node
  const inner = read(formula.text, budget)
  return typeof inner === 'string' ? node : inner
}

/** "60 m" and "60 km/h" with their units, where the other has none of the names that the letters could be. */
export function readWithUnit(
  source: string,
  own: Node | string,
  other: Node | string,
  budget: Budget,
): Node | undefined {
  if (isWithoutNames(own) || !isWithoutNames(other)) return undefined
  const node = read(source, budget, { lettersAreUnits: true })
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

const wrapper = '(?:\\\\(?:text(?:bf|rm|it)?|mathrm|mathbf|mbox) ?\\{)?'
const marked = new RegExp(
  `^\\s*${wrapper}\\s*(?:(?:the )?(?:correct )?(?:option|choice|answer)(?: is)?:?\\s*)?(?:\\(([A-J])\\)|([A-J])\\s*[.):])\\s*\\}?[\\s~:.\\\\]*?(?=\\S|$)(.*)$`,
  's',
)
const named = new RegExp(
  `^\\s*${wrapper}\\s*(?:the )?(?:correct )?(?:option|choice|answer)(?: is)?:? ?\\(?([A-J])\\)?\\s*\\}?[\\s.]*$`,
  'is',
)

/** "(D) 12", "D. 12", "\textbf{(D)} 12", "Option D": the letter, and what stands behind it. */
export function choiceOf(source: string): { letter: string; text: string } | undefined {
  if (source.length > MAX_ANSWER) return undefined
  const text = source.trim().replaceAll(/\s+/g, ' ')
  const alone = named.exec(text)
  if (alone) return { letter: alone[1]!.toUpperCase(), text: '' }
  const match = marked.exec(text)
  if (!match) return undefined
  return { letter: (match[1] ?? match[2])!, text: match[3]!.replace(/^(?:\\[ ,;:!]|[\s~:.])+/, '').trim() }
}

/** The letters of "B, D", "B and D" or BD, in order; whether anything stands between them. */
export function choicesOf(source: string): { letters: string; areApart: boolean } | undefined {
  const text = source
    .slice(0, 100)
    .replaceAll(/\\(?:text(?:bf|rm|it)?|mathrm|mathbf|mbox) ?\{([^{}]*)\}/g, '$1')
    .replaceAll(/[$()]/g, '')
    .trim()
  if (/^[A-J]{2,6}$/.test(text)) return { letters: [...text].sort().join(''), areApart: false }
  if (!/^[A-J](?:\s*(?:[,;&]|\band\b|,\s*and\b)\s*[A-J]){1,5}$/.test(text)) return undefined
  return { letters: (text.match(/[A-J]/g) ?? []).sort().join(''), areApart: true }
}

/** "(1) 14; (2) 9" as "14, 9". */
function withoutLabels(text: string): string {
  const source = text.trim()
  const labels = [...source.matchAll(/(?:^|[\s,;]|\\\\|\\quad)\(?(\d|[a-e]|i{1,3}|iv)\)\s*/g)]
  const names = labels.map(([, name]) => name!).join(' ')
  if (labels.length < 2 || labels[0]!.index > 0) return source
  if (!['1 2 3 4 5', 'a b c d e', 'i ii iii iv'].some(all => all.startsWith(names))) return source
  const parts = labels.map(({ index, 0: label }, i) =>
    source
      .slice(index + label.length, labels[i + 1]?.index)
      .trimEnd()
      .replace(/(?:[\s,;.]|\\quad|\\text\{\s*(?:and)?\s*\}|\band\b)+$/, ''),
  )
  return parts.some(part => part.trim() === '') ? source : parts.join(', ')
}

/** "kπ, where k is an integer", "kπ (k ∈ ℤ)" as kπ, k ∈ ℤ. */
function withClause(source: string): string {
  const tail = source.slice(-300)
  const match = clause.exec(tail) ?? integerClause.exec(tail)
  if (!match) return source
  const head = source.slice(0, source.length - tail.length + match.index)
  // A brace before the clause may close a brace that was opened earlier.
  const open = (head.match(/(?<!\\)\{/g) ?? []).length - (head.match(/(?<!\\)\}/g) ?? []).length
  const isBalanced = open >= 0 && (match[0].match(/(?<!\\)\}/g) ?? []).length >= open
  const domain = /[Nℕ]/.test(match[2] ?? '') ? 'N' : 'Z'
  return isBalanced ? `${head}${'}'.repeat(open)}, ${match[1]} \\in \\mathbb{${domain}}` : source
}

/** White space, brackets, dollar signs and words in front of a clause. */
const lead =
  '(?:[\\s,;($~{}]|\\\\(?:text|mathrm|quad|qquad|[ ,;])|\\b(?:where|for|with|and|as|any|all|every|each|some|an|integers?|numbers?)\\b)+'
const clause = new RegExp(
  `${lead}([a-zA-Z])\\s*(?:\\\\in|∈)\\s*(\\\\mathbb\\s*\\{?[ZN]\\}?|\\\\mathbf\\{[ZN]\\}|[ZNℤℕ])[\\s)$.}]*$`,
)
const integerClause = new RegExp(
  `(?=.*integer)${lead}([a-zA-Z])(?:[\\s$~{})]|\\\\(?:text|mathrm|[ ,;])|\\b(?:is|are|be|being|an?|any|arbitrary|integers?)\\b)*\\.?$`,
)

/** x ≠ 1, 2 as x ≠ 1 and x ≠ 2. */
function spread(node: Node): Node {
  if (node.type !== 'list') return node
  const [first, ...rest] = node.items
  if (
    first?.type !== 'relation' ||
    String(first.signs) !== '!=' ||
    rest.some(({ type }) => type === 'relation')
  )
    return node
  const relations = rest.map((value): Node => ({ ...first, items: [first.items[0]!, value] }))
  return { type: 'list', connector: 'and', items: [first, ...relations] }
}

/** Expands answers with ± to the list of their values. ± and ∓ change sign together; without a ∓, each ± changes by itself. */
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
