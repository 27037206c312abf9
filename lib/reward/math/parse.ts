/** Parses tokens into a tree, by recursive descent over the notation that answers use. */
import { Budget, Unreadable } from './budget.js'
import { changedByWords, numberInWords } from './numbers.js'
import { relations } from './parse/factors.js'
import { marked } from './parse/nodes.js'
import { Operations } from './parse/operations.js'
import { rational } from './rational.js'
import { type Reading, type Token, tokenize } from './tokens.js'
import type { Connector, Node, Relation } from './tree.js'
import { haveSameDimensions, isKnown, readUnit } from './units.js'
import { isDenied } from './words.js'

const MAX_TOKENS = 1000

/** The answer as a tree. Throws Unreadable. */
export function parseAnswer(source: string, reading: Reading = {}): Node {
  return new Parser(tokenize(source, reading)).run()
}

class Parser extends Operations {
  constructor(tokens: Token[]) {
    if (tokens.length > MAX_TOKENS) throw new Unreadable(`more than ${MAX_TOKENS} symbols`)
    while (tokens.length > 0 && isPunctuation(tokens.at(-1)!)) tokens.pop()
    super(tokens)
  }

  run(): Node {
    if (this.tokens.length === 0) throw new Unreadable('nothing')
    // "= 7"
    if (this.tokens.length > 1) this.take('sign', '=')
    const node = this.over()
    if (this.at < this.tokens.length) throw new Unreadable(`"${this.peek()!.text}" where it makes no sense`)
    return node
  }

  /** A list, or 7 \over 3 and 10 \choose 3. */
  protected override over(): Node {
    const left = this.list()
    if (this.take('command', 'over')) return { type: 'quotient', left, right: this.list() }
    if (this.take('command', 'choose')) return { type: 'call', name: 'binomial', items: [left, this.list()] }
    return left
  }

  /** Expressions with commas, "and" or "or" between them. */
  protected override list(): Node {
    const items = [this.relation()]
    let connector: Connector | undefined
    while (this.is('connector')) {
      while (this.is('connector')) {
        const text = this.peek()!.text as Connector
        const isLogic = (sign?: string) => sign === '∧' || sign === '∨'
        if (connector !== undefined && text !== connector && (isLogic(text) || isLogic(connector)))
          throw new Unreadable('∧ or ∨ without brackets')
        if (connector === undefined || text !== ',') connector = text
        this.at++
      }
      if (this.isAtEnd()) break
      const item = this.relation()
      // 5 hours and 30 minutes
      const whole = connector === 'and' && items.length === 1 ? addQuantities(items[0]!, item) : undefined
      if (whole) {
        items[0] = whole
        connector = undefined
      } else items.push(item)
    }
    if (connector === undefined || (items.length === 1 && connector === ',')) return items[0]!
    return { type: 'list', connector, items }
  }

  protected override relation(): Node {
    const items = [this.quantity()]
    const signs: Relation[] = []
    for (;;) {
      const token = this.peek()
      const isNegated = token?.type === 'command' && token.text === 'not'
      const name = isNegated ? this.peek(1)?.text : token?.type === 'text' ? undefined : token?.text
      const sign = name !== undefined && Object.hasOwn(relations, name) ? relations[name]! : undefined
      if (!sign) break
      if (isNegated && sign !== '=') throw new Unreadable(`not ${sign}`)
      this.at += isNegated ? 2 : 1
      // Plain text: <= and >=.
      const hasEquals = (sign === '<' || sign === '>') && this.take('sign', '=')
      const item = this.quantity()
      // 2/3 = 0.666… is rounded.
      const isCut = item.type === 'number' && this.take('command', 'ldots')
      signs.push(isNegated ? '!=' : hasEquals ? `${sign}=` : isCut && sign === '=' ? '~' : sign)
      items.push(item)
    }
    const node: Node = signs.length === 0 ? items[0]! : { type: 'relation', signs, items }
    const modulus = this.modulus()
    return modulus ? { type: 'congruence', left: node, right: modulus } : node
  }

  /** \pmod 5, (\bmod 5), (mod 5) */
  protected modulus(): Node | undefined {
    if (this.take('command', 'pmod')) return this.operand()
    if (!this.is('sign', '(') || this.peek(1)?.text !== 'mod') return undefined
    this.at += 2
    const modulus = this.sum()
    this.expect('sign', ')')
    return modulus
  }

  /** An expression and its unit; or text. */
  protected quantity(): Node {
    while (this.isLabel()) this.at += 2
    const outer = this.currency
    this.currency = undefined
    if (this.is('text')) {
      const { text } = this.peek()!
      // "The answer is 17", "x equals 3"
      if (isIntroduction(text) && this.peek(1)) this.at++
      else return this.text()
    }
    this.take('command', 'approx')
    let node = this.sets()
    // 18\$
    if (this.isCurrency()) this.currency = `${this.tokens[this.at++]!.text}s`
    let unit = this.currency
    this.currency = outer
    if (this.is('text') || this.isUnitFraction()) unit = this.unit().trim()
    for (let words = unit; words; ) {
      const changed = changedByWords(node, words)
      if (!changed) break
      node = changed.node
      words = changed.rest.trim()
      unit = words === '' ? undefined : words
    }
    if (unit === undefined) return node
    if (/^(?:percent|per cent|pct|prozent|pour cent|%)$/i.test(unit)) return marked('percent', node)
    if (/^(?:degrees?|degs?)$/i.test(unit)) return marked('degrees', node)
    node = { type: 'quantity', item: node, unit }
    // 2 hours 30 minutes
    const start = this.at
    const rest = this.is('number') ? this.quantity() : undefined
    const whole = rest && addQuantities(node, rest)
    if (whole) return whole
    this.at = start
    return node
  }

  /** "Answer: 60" */
  protected isLabel(): boolean {
    const [label, colon, rest] = [this.peek(), this.peek(1), this.peek(2)]
    return (
      label?.type === 'text' &&
      /^(?:(?:the )?(?:final |correct )?(?:answer|solution|result)s?|答案|最终答案)$/i.test(label.text) &&
      colon?.type === 'sign' &&
      colon.text === ':' &&
      rest !== undefined
    )
  }

  protected isCurrency(): boolean {
    return ['dollar', 'euro', 'pound', 'yuan'].some(name => this.is('command', name))
  }

  protected text(): Node {
    const text = this.peek()!.text
    this.at++
    // \text{A5}_{11}
    if (this.is('sign', '_') && /^[0-9A-Z]+$/.test(text)) return this.lettersInBase(text)
    const word = text.toLowerCase()
    const value = numberInWords(word)
    if (value !== undefined) return value
    if (/^(?:all |the )?real numbers$|^all reals?$/.test(word)) return { type: 'constant', name: 'reals' }
    if (
      /^(?:(?:there (?:is|are) )?no (?:real )?solutions?(?: exists?)?|none|(?:the )?empty set|null set)$/.test(
        word,
      )
    )
      return { type: 'constant', name: 'empty' }
    return { type: 'text', text }
  }

  /** "cm", then perhaps ^2, /, another. */
  protected unit(): string {
    let unit = ''
    for (;;) {
      if (this.isUnitFraction()) {
        unit += ` ${this.peek(2)!.text}/${this.peek(5)!.text}`
        this.at += 6
      } else if (this.is('text')) unit += ` ${this.peek()!.text}`
      else if (unit !== '' && this.is('sign', '/') && this.peek(1)?.type === 'text') unit += '/'
      else if (unit !== '' && this.is('sign', '^')) {
        this.at++
        const hasBrace = this.take('sign', '{')
        const isNegative = this.take('sign', '-')
        if (!this.is('number')) throw new Unreadable('a unit to a power that is no number')
        unit += `^${isNegative ? '-' : ''}${this.peek()!.text}`
        this.at++
        if (hasBrace) this.expect('sign', '}')
        continue
      } else return unit
      this.at++
    }
  }
}

/** "The answer is", "x equals", 答案是 */
function isIntroduction(text: string): boolean {
  return /(?:\b(?:is|are|equals?|be)|[:=])\s*$|(?:是|为|等于)$/i.test(text) && !isDenied(text)
}

function isPunctuation(token: Token): boolean {
  if (token.type === 'command') return token.text === 'newline'
  return (token.type === 'sign' && ['.', ':', '?'].includes(token.text)) || token.type === 'connector'
}

/** Joins two quantities of the same kind, the larger unit first, into one quantity in that unit. */
function addQuantities(a: Node, b: Node): Node | undefined {
  if (a.type !== 'quantity' || b.type !== 'quantity') return undefined
  const budget = new Budget(100)
  const [large, small] = [readUnit(a.unit, budget), readUnit(b.unit, budget)]
  if (!isKnown(large) || large.words.length + small.words.length > 0) return undefined
  if (!haveSameDimensions(large, small)) return undefined
  const { numerator, denominator } = small.factor
  const ratio = rational(numerator * large.factor.denominator, denominator * large.factor.numerator)
  if (ratio.numerator >= ratio.denominator) return undefined
  const rest: Node = { type: 'product', items: [b.item, { type: 'number', value: ratio, digits: 1 }] }
  return { type: 'quantity', item: { type: 'sum', items: [a.item, rest] }, unit: a.unit }
}
