/** Tokens to a tree: recursive descent over the notation that answers use. */

import { Budget, Unreadable } from './budget.js'
import {
  based,
  changedByWords,
  decimal,
  kindOfRatio,
  numberInWords,
  ordinalEnding,
  perThousand,
  repeatingDecimal,
} from './numbers.js'
import { rational } from './rational.js'
import { type Reading, type Token, tokenize } from './tokens.js'
import {
  type Connector,
  integer,
  LOG,
  mapParts,
  type Node,
  type NumberSet,
  productOf,
  quotientOf,
  type Relation,
} from './tree.js'
import { haveSameDimensions, isKnown, readUnit } from './units.js'

/** Deeper nesting is refused. */
const MAX_DEPTH = 60
const MAX_TOKENS = 1000
const relations: Readonly<Record<string, Relation>> = {
  '=': '=',
  '<': '<',
  '>': '>',
  le: '<=',
  ge: '>=',
  ne: '!=',
  in: 'in',
  approx: '~',
  equiv: '=',
  to: '→',
  iff: '↔',
}
const setOperations = { cup: 'union', cap: 'intersection', setminus: 'difference' } as const
const functions = new Set(
  (
    'sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh ln log lg exp ' +
    'cis max min gcd lcm det arg Re Im'
  ).split(' '),
)
/** Commands that stand between expressions, or behind them. */
const notFactors = new Set(
  'times cdot div pm mp newline rangle rfloor rceil not over choose dollar euro pound yuan mod pmod circ ldots norm'.split(
    ' ',
  ),
)
/** Functions without a call of their own: f(5) is no product. Of other names only what nobody would write for one: P(3), u(x). */
const functionNames = new Set(
  'f g h F G H \\phi \\Phi \\psi \\Psi \\Gamma \\zeta \\varphi \\sigma \\tau \\mu \\chi'.split(' '),
)
const numberSets: Readonly<Record<string, NumberSet>> = {
  R: 'reals',
  Z: 'integers',
  N: 'naturals',
  Q: 'rationals',
  C: 'complexes',
}
const inverses: Readonly<Record<string, string>> = {
  sin: 'arcsin',
  cos: 'arccos',
  tan: 'arctan',
  cot: 'arccot',
}
const closing: Readonly<Record<string, string>> = { '(': ')', '[': ']', '\\{': '\\}' }
const closingCommand: Readonly<Record<string, string>> = {
  langle: 'rangle',
  lfloor: 'rfloor',
  lceil: 'rceil',
}
const accents = new Set(
  'vec hat bar overline overrightarrow tilde widehat widetilde dot ddot overleftrightarrow'.split(' '),
)
/** The answer as a tree. Throws Unreadable. */
export function parseAnswer(source: string, reading: Reading = {}): Node {
  return new Parser(tokenize(source, reading)).run()
}

class Parser {
  #tokens: readonly Token[]
  #at = 0
  #depth = 0
  /** How many |…| are open: within them a bar closes. */
  #bars = 0
  /** A currency sign, or the scale of a temperature, was read in this expression. */
  #currency: string | undefined
  /** Within an integral: its d ends it. */
  #integrals = 0
  /** Within braces of a set: a colon ends what is in the set. */
  #isInSet = false

  constructor(tokens: Token[]) {
    if (tokens.length > MAX_TOKENS) throw new Unreadable(`more than ${MAX_TOKENS} symbols`)
    while (tokens.length > 0 && isPunctuation(tokens.at(-1)!)) tokens.pop()
    this.#tokens = tokens
  }

  run(): Node {
    if (this.#tokens.length === 0) throw new Unreadable('nothing')
    // "= 7"
    if (this.#tokens.length > 1) this.#take('sign', '=')
    const node = this.#over()
    if (this.#at < this.#tokens.length)
      throw new Unreadable(`"${this.#peek()!.text}" where it makes no sense`)
    return node
  }

  #peek(ahead = 0): Token | undefined {
    return this.#tokens[this.#at + ahead]
  }

  #is(type: Token['type'], text?: string): boolean {
    const token = this.#tokens[this.#at]
    return token?.type === type && (text === undefined || token.text === text)
  }

  #take(type: Token['type'], text?: string): boolean {
    const found = this.#is(type, text)
    if (found) this.#at++
    return found
  }

  #expect(type: Token['type'], text: string): void {
    if (!this.#take(type, text)) throw new Unreadable(`no ${text}`)
  }

  #nested<T>(body: () => T): T {
    if (++this.#depth > MAX_DEPTH) throw new Unreadable('nested too deeply')
    const result = body()
    this.#depth--
    return result
  }

  /** A list, or 7 \over 3 and 10 \choose 3. */
  #over(): Node {
    const left = this.#list()
    if (this.#take('command', 'over')) return { type: 'quotient', left, right: this.#list() }
    if (this.#take('command', 'choose'))
      return { type: 'call', name: 'binomial', items: [left, this.#list()] }
    return left
  }

  /** Expressions with commas, "and" or "or" between them. */
  #list(): Node {
    const items = [this.#relation()]
    let connector: Connector | undefined
    while (this.#is('connector')) {
      while (this.#is('connector')) {
        const text = this.#peek()!.text as Connector
        const isLogic = (sign?: string) => sign === '∧' || sign === '∨'
        if (connector !== undefined && text !== connector && (isLogic(text) || isLogic(connector)))
          throw new Unreadable('∧ or ∨ without brackets')
        if (connector === undefined || text !== ',') connector = text
        this.#at++
      }
      if (this.#isAtEnd()) break
      const item = this.#relation()
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

  #isAtEnd(): boolean {
    const token = this.#peek()
    if (!token) return true
    return (token.type === 'sign' && [')', ']', '\\}', '}'].includes(token.text)) || token.type === 'end'
  }

  #relation(): Node {
    const items = [this.#quantity()]
    const signs: Relation[] = []
    for (;;) {
      const token = this.#peek()
      const isNegated = token?.type === 'command' && token.text === 'not'
      const name = isNegated ? this.#peek(1)?.text : token?.type === 'text' ? undefined : token?.text
      const sign = name !== undefined && Object.hasOwn(relations, name) ? relations[name]! : undefined
      if (!sign) break
      if (isNegated && sign !== '=') throw new Unreadable(`not ${sign}`)
      this.#at += isNegated ? 2 : 1
      // Plain text: <= and >=.
      const hasEquals = (sign === '<' || sign === '>') && this.#take('sign', '=')
      const item = this.#quantity()
      // 2/3 = 0.666… is rounded.
      const isCut = item.type === 'number' && this.#take('command', 'ldots')
      signs.push(isNegated ? '!=' : hasEquals ? `${sign}=` : isCut && sign === '=' ? '~' : sign)
      items.push(item)
    }
    const node: Node = signs.length === 0 ? items[0]! : { type: 'relation', signs, items }
    const modulus = this.#modulus()
    return modulus ? { type: 'congruence', left: node, right: modulus } : node
  }

  /** \pmod 5, (\bmod 5), (mod 5) */
  #modulus(): Node | undefined {
    if (this.#take('command', 'pmod')) return this.#operand()
    if (!this.#is('sign', '(') || this.#peek(1)?.text !== 'mod') return undefined
    this.#at += 2
    const modulus = this.#sum()
    this.#expect('sign', ')')
    return modulus
  }

  /** An expression and its unit; or text. */
  #quantity(): Node {
    while (this.#isLabel()) this.#at += 2
    const outer = this.#currency
    this.#currency = undefined
    if (this.#is('text')) {
      const { text } = this.#peek()!
      // "The answer is 17", "x equals 3"
      if (isIntroduction(text) && this.#peek(1)) this.#at++
      else return this.#text()
    }
    this.#take('command', 'approx')
    let node = this.#sets()
    // 18\$
    if (this.#isCurrency()) this.#currency = `${this.#tokens[this.#at++]!.text}s`
    let unit = this.#currency
    this.#currency = outer
    if (this.#is('text') || this.#isUnitFraction()) unit = this.#unit().trim()
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
    const start = this.#at
    const rest = this.#is('number') ? this.#quantity() : undefined
    const whole = rest && addQuantities(node, rest)
    if (whole) return whole
    this.#at = start
    return node
  }

  /** "Answer: 60" */
  #isLabel(): boolean {
    const [label, colon, rest] = [this.#peek(), this.#peek(1), this.#peek(2)]
    return (
      label?.type === 'text' &&
      /^(?:(?:the )?(?:final |correct )?(?:answer|solution|result)s?|答案|最终答案)$/i.test(label.text) &&
      colon?.type === 'sign' &&
      colon.text === ':' &&
      rest !== undefined
    )
  }

  #isCurrency(): boolean {
    return ['dollar', 'euro', 'pound', 'yuan'].some(name => this.#is('command', name))
  }

  /** \frac{\text{m}}{\text{s}} */
  #isUnitFraction(): boolean {
    const types = ['command', 'sign', 'text', 'sign', 'sign', 'text', 'sign']
    return this.#is('command', 'frac') && types.every((type, i) => this.#peek(i)?.type === type)
  }

  #text(): Node {
    const text = this.#peek()!.text
    this.#at++
    // \text{A5}_{11}
    if (this.#is('sign', '_') && /^[0-9A-Z]+$/.test(text)) return this.#lettersInBase(text)
    const word = text.toLowerCase()
    const value = numberInWords(word)
    if (value !== undefined) return value
    if (/^(?:all |the )?real numbers$|^all reals?$/.test(word)) return { type: 'constant', name: 'reals' }
    if (/^(?:no (?:real )?solutions?|none|(?:the )?empty set|null set)$/.test(word))
      return { type: 'constant', name: 'empty' }
    return { type: 'text', text }
  }

  /** "cm", then perhaps ^2, /, another. */
  #unit(): string {
    let unit = ''
    for (;;) {
      if (this.#isUnitFraction()) {
        unit += ` ${this.#peek(2)!.text}/${this.#peek(5)!.text}`
        this.#at += 6
      } else if (this.#is('text')) unit += ` ${this.#peek()!.text}`
      else if (unit !== '' && this.#is('sign', '/') && this.#peek(1)?.type === 'text') unit += '/'
      else if (unit !== '' && this.#is('sign', '^')) {
        this.#at++
        const hasBrace = this.#take('sign', '{')
        const isNegative = this.#take('sign', '-')
        if (!this.#is('number')) throw new Unreadable('a unit to a power that is no number')
        unit += `^${isNegative ? '-' : ''}${this.#peek()!.text}`
        this.#at++
        if (hasBrace) this.#expect('sign', '}')
        continue
      } else return unit
      this.#at++
    }
  }

  #sets(): Node {
    let left = this.#ratio()
    for (;;) {
      const token = this.#peek()
      if (token?.type !== 'command' || !Object.hasOwn(setOperations, token.text)) return left
      this.#at++
      left = { type: setOperations[token.text as keyof typeof setOperations], left, right: this.#ratio() }
    }
  }

  #ratio(): Node {
    const start = this.#at
    const items = [this.#sum()]
    while (this.#colon()) items.push(this.#sum())
    if (items.length === 1) return items[0]!
    const written = this.#tokens.slice(start, this.#at).map(({ text }) => text)
    return { type: 'ratio', items, kind: kindOfRatio(written.join('').replaceAll(/[{}]/g, '')) }
  }

  /** 3:5, or 4{:}51. */
  #colon(): boolean {
    if (this.#isInSet) return false
    if (this.#take('sign', ':')) return true
    if (!this.#is('sign', '{') || this.#peek(1)?.text !== ':' || this.#peek(2)?.text !== '}') return false
    this.#at += 3
    return true
  }

  #sum(): Node {
    const items: Node[] = []
    do items.push(this.#signed())
    while (this.#isSign())
    return items.length === 1 ? items[0]! : { type: 'sum', items }
  }

  #isSign(): boolean {
    const token = this.#peek()
    if (token?.type === 'sign') return token.text === '+' || token.text === '-'
    return token?.type === 'command' && (token.text === 'pm' || token.text === 'mp')
  }

  #signed(): Node {
    if (!this.#isSign()) return this.#product()
    const { text } = this.#peek()!
    this.#at++
    const item = this.#nested(() => this.#signed())
    if (text === '+') return item
    return { type: text === '-' ? 'minus' : text === 'pm' ? 'plusMinus' : 'minusPlus', item }
  }

  #product(): Node {
    let factors = [this.#factor()]
    const join = (): Node => inOrder(factors) ?? productOf(...factors)
    for (;;) {
      if (this.#take('command', 'times')) {
        const right = this.#signedFactor()
        const isVectors = isVector(right) && factors.some(isVector)
        if (isVectors) factors = [{ type: 'apply', name: '×', items: [join(), right] }]
        else factors.push(right)
      } else if (this.#take('command', 'cdot')) {
        const right = this.#signedFactor()
        const [left] = factors
        if (factors.length === 1 && isTuple(left!) && isTuple(right)) factors = [apply('·', [left!, right])]
        else factors.push(right)
      } else if (this.#take('sign', '*')) factors.push(this.#signedFactor())
      else if (this.#take('sign', '/') || this.#take('command', 'div')) {
        factors = [quotientOf(join(), this.#signedFactor())]
      } else if (this.#take('command', 'mod')) {
        factors = [{ type: 'call', name: 'mod', items: [join(), this.#signedFactor()] }]
      } else if (this.#take('command', 'circ')) {
        factors = [{ type: 'apply', name: '∘', items: [join(), this.#factor()] }]
      } else if (this.#isFactor()) {
        const isNumber = this.#is('number')
        // Two numbers side by side are no product.
        if (isNumber && this.#peek(-1)?.type === 'number') throw new Unreadable('two numbers side by side')
        factors.push(this.#factor())
      } else return join()
    }
  }

  /** After × and ÷ a sign may stand. */
  #signedFactor(): Node {
    if (this.#take('sign', '-')) return { type: 'minus', item: this.#nested(() => this.#signedFactor()) }
    if (this.#take('sign', '+')) return this.#nested(() => this.#signedFactor())
    return this.#factor()
  }

  #isFactor(): boolean {
    const token = this.#peek()
    if (!token) return false
    switch (token.type) {
      case 'letter':
        return this.#integrals === 0 || !this.#isDifferential()
      case 'number':
      case 'begin':
        return true
      case 'command':
        return !(
          Object.hasOwn(relations, token.text) ||
          Object.hasOwn(setOperations, token.text) ||
          notFactors.has(token.text) ||
          this.#isUnitFraction()
        )
      case 'sign':
        if (token.text === '(' && this.#peek(1)?.text === 'mod') return false
        return ['(', '[', '\\{', '{'].includes(token.text)
          ? !(token.text === '{' && this.#peek(1)?.text === ':')
          : token.text === '|' && this.#bars === 0
      default:
        return false
    }
  }

  /** A primary with what may follow it: powers, factorials, degrees, percent. */
  #factor(): Node {
    let node = this.#nested(() => this.#primary())
    for (;;) {
      if (this.#take('sign', '^')) node = this.#power(node)
      else if (this.#take('sign', '!')) {
        const isDouble = this.#take('sign', '!')
        node = { type: 'call', name: isDouble ? 'double factorial' : 'factorial', items: [node] }
      } else if (this.#take('sign', '%')) node = marked('percent', node)
      else if (this.#take('sign', '‰')) node = perThousand(node)
      else if (this.#isCalled(node)) node = this.#called(node)
      else if (this.#take('sign', "'")) node = primed(node)
      else return node
    }
  }

  /** Is a bracket behind this name the arguments of a function? */
  #isCalled(node: Node): boolean {
    if (!this.#is('sign', '(')) return false
    if (node.type === 'apply') return node.name === '∘'
    const name = node.type === 'power' ? node.left : node
    if (name.type !== 'variable') return false
    if (functionNames.has(name.name.replace(/['_].*/, ''))) return true
    if (name !== node || name.name.length > 2) return false
    const [argument, close] = [this.#peek(1), this.#peek(2)]
    // P(3), u(x); A(1, 2) and C(9, 2)
    const isClosed = close?.text === ')' || (close?.text === ',' && /^[A-Z]$/.test(name.name))
    return isClosed && (argument?.type === 'number' || argument?.type === 'letter')
  }

  #called(name: Node): Node {
    this.#at++
    const { isInSet, bars } = { isInSet: this.#isInSet, bars: this.#bars }
    this.#isInSet = false
    this.#bars = 0
    const inner = this.#nested(() => this.#list())
    this.#isInSet = isInSet
    this.#bars = bars
    this.#expect('sign', ')')
    const items = inner.type === 'list' && inner.connector === ',' ? inner.items : [inner]
    // C(9, 2)
    if (name.type === 'variable' && name.name === 'C' && items.length === 2 && items.every(isNumber))
      return { type: 'call', name: 'binomial', items }
    return applied(name, items)
  }

  #power(base: Node): Node {
    const isBraced = this.#is('sign', '{')
    const [mark, close] = isBraced ? [this.#peek(1), this.#peek(2)] : [this.#peek(), undefined]
    if (mark?.text === 'circ' && (!isBraced || close?.text === '}')) {
      this.#at += isBraced ? 3 : 1
      const scale = this.#temperature()
      if (scale) {
        this.#currency = scale
        return base
      }
      return marked('degrees', this.#withMinutes(base))
    }
    // 45^o
    if (
      base.type === 'number' &&
      mark?.type === 'letter' &&
      mark.text === 'o' &&
      (!isBraced || close?.text === '}')
    ) {
      this.#at += isBraced ? 3 : 1
      return marked('degrees', base)
    }
    // 21^{st}
    if (isBraced && base.type === 'number' && base.value.denominator === 1n) {
      const letters = [mark, close].map(token => (token?.type === 'letter' ? token.text : '')).join('')
      if (this.#peek(3)?.text === '}' && letters === ordinalEnding(base.value.numerator)) {
        this.#at += 4
        return base
      }
    }
    if (mark?.text === "'" && (!isBraced || close?.text === '}')) {
      this.#at += isBraced ? 3 : 1
      return primed(base)
    }
    // 4^{\text{th}}
    const ordinal = isBraced ? mark : this.#peek()
    if (ordinal?.type === 'text' && /^(?:st|nd|rd|th)$/.test(ordinal.text)) {
      this.#at += isBraced ? 2 : 1
      if (isBraced) this.#expect('sign', '}')
      return base
    }
    const right = this.#script()
    // x^y^z stands for x^(y^z).
    if (!isBraced && this.#take('sign', '^')) {
      return { type: 'power', left: base, right: this.#nested(() => this.#power(right)) }
    }
    return { type: 'power', left: base, right }
  }

  /** 20^\circ C, 20^\circ\text{C} */
  #temperature(): string | undefined {
    const token = this.#peek()
    const isName = token?.type === 'letter' || token?.type === 'text'
    const [, letter] = (isName && /^\s*([CF])(?:elsius|ahrenheit)?\s*$/.exec(token.text)) || []
    // 90^\circ C may be an angle named C, but not with a name behind it.
    if (letter === undefined || this.#peek(1)?.type === 'letter') return undefined
    this.#at++
    return letter === 'C' ? 'celsius' : 'fahrenheit'
  }

  /** 30^\circ 15' */
  #withMinutes(degrees: Node): Node {
    const minutes = this.#peek()
    if (minutes?.type !== 'number' || !/^\d\d?$/.test(minutes.text) || this.#peek(1)?.text !== "'")
      return degrees
    this.#at += 2
    return {
      type: 'sum',
      items: [degrees, { type: 'quotient', left: decimal(minutes.text), right: integer(60) }],
    }
  }

  /** What follows ^: braces, or one primary with its sign. */
  #script(): Node {
    if (this.#take('sign', '-')) return { type: 'minus', item: this.#script() }
    if (this.#take('sign', '+')) return this.#script()
    return this.#nested(() => this.#primary())
  }

  /** 12_8, (12)_8, 12_{\text{eight}} */
  #based(text: string): Node {
    this.#at++
    const hasBrace = this.#take('sign', '{')
    const hasBracket = this.#take('sign', '(')
    const token = this.#peek()
    const base =
      token?.type === 'number' ? Number(token.text) : Number(valueOfWord(token?.text ?? '') ?? Number.NaN)
    if (!(base >= 2 && base <= 36)) throw new Unreadable('a subscript that is no base')
    this.#at++
    if (hasBracket) this.#expect('sign', ')')
    if (hasBrace) this.#expect('sign', '}')
    return based(text, base)
  }

  #primary(): Node {
    const token = this.#peek()
    if (!token) throw new Unreadable('an end where more is expected')
    this.#at++
    switch (token.type) {
      case 'number':
        return this.#number(token)
      case 'letter':
        return this.#letter(token)
      case 'command':
        return this.#command(token.text)
      case 'begin':
        return this.#matrix(token.text)
      case 'sign':
        if (token.text === '_' || token.text === '^') return this.#combinations(undefined)
        if (token.text === '{' && this.#peek()?.text === '}' && /^[_^]$/.test(this.#peek(1)?.text ?? '')) {
          this.#at += 2
          return this.#combinations(undefined)
        }
        if (token.text === '{') return this.#braced()
        if (token.text === '|') return this.#absolute()
        if (Object.hasOwn(closing, token.text)) return this.#brackets(token.text)
        break
    }
    throw new Unreadable(`"${token.text}" where a number or name is expected`)
  }

  #number({ text }: Token): Node {
    if (/[A-Z]/.test(text)) return this.#lettersInBase(text)
    if (this.#is('letter', 'C') && !this.#peek()!.spaced && this.#peek(1)?.type === 'number')
      return this.#combinations(decimal(text))
    if (this.#is('sign', '_')) return this.#based(text)
    const node = this.#repeating(text) ?? decimal(text)
    if (!/^\d+$/.test(text)) return node
    return this.#mixed(node) ?? node
  }

  /** 1A_{16} */
  #lettersInBase(text: string): Node {
    this.#expect('sign', '_')
    const hasBrace = this.#take('sign', '{')
    const base = Number(this.#peek()?.text)
    if (!this.#take('number') || !(base >= 2 && base <= 36))
      throw new Unreadable('a subscript that is no base')
    if (hasBrace) this.#expect('sign', '}')
    return based(text, base)
  }

  /** 0.1\overline{23} */
  #repeating(text: string): Node | undefined {
    const dots = this.#is('sign', '.') && /^\d+$/.test(text) ? 1 : 0
    const mark = this.#peek(dots)
    if (mark?.type !== 'command' || !['overline', 'bar', 'dot'].includes(mark.text)) return undefined
    if (dots === 0 && !text.includes('.')) return undefined
    const isBraced = this.#peek(dots + 1)?.text === '{'
    const digits = this.#peek(dots + (isBraced ? 2 : 1))
    if (digits?.type !== 'number' || !/^\d+$/.test(digits.text)) return undefined
    this.#at += dots + (isBraced ? 3 : 2)
    if (isBraced) this.#expect('sign', '}')
    return repeatingDecimal(text, digits.text)
  }

  /** 3\frac{1}{2} and 3 1/2, where all three are whole numbers. */
  #mixed(whole: Node): Node | undefined {
    const [start, tokens] = [this.#at, this.#tokens]
    let fraction: Node | undefined
    if (this.#take('command', 'frac')) fraction = this.#fraction()
    else if (
      this.#is('number') &&
      this.#peek()!.spaced &&
      this.#peek(1)?.text === '/' &&
      this.#peek(2)?.type === 'number'
    ) {
      fraction = { type: 'quotient', left: decimal(this.#peek()!.text), right: decimal(this.#peek(2)!.text) }
      this.#at += 3
    }
    if (
      fraction?.type === 'quotient' &&
      [fraction.left, fraction.right].every(part => part.type === 'number' && part.value.denominator === 1n)
    ) {
      return { type: 'sum', items: [whole, fraction] }
    }
    this.#at = start
    this.#tokens = tokens
    return undefined
  }

  #letter({ text, isBold }: Extract<Token, { type: 'letter' }>): Node {
    if (text === 'e') return { type: 'constant', name: 'e' }
    if (text === 'i' && !isBold) return { type: 'constant', name: 'i' }
    if (/^[CAP]$/.test(text) && this.#is('sign', '_')) {
      const start = this.#at
      const chosen = this.#chosen(text)
      if (chosen) return chosen
      this.#at = start
    }
    if (isBold) return this.#variable(text, true)
    // AB
    let run = text
    if (/[A-Z]/.test(text)) while (this.#isCapital()) run += this.#tokens[this.#at++]!.text
    return this.#variable(run)
  }

  /** A further letter of a name in capitals, which has no index or power of its own. */
  #isCapital(): boolean {
    const token = this.#peek()
    return token?.type === 'letter' && /[A-Z]/.test(token.text) && !token.isBold
  }

  /** C_9^2, A_9^2, P_9^2 */
  #chosen(letter: string): Node | undefined {
    this.#at++
    const top = this.#script()
    if (!this.#take('sign', '^') || !isNumber(top)) return undefined
    const below = this.#script()
    if (!isNumber(below) || top.value.numerator < below.value.numerator || top.value.numerator < 2n)
      return undefined
    return { type: 'call', name: letter === 'C' ? 'binomial' : 'permutations', items: [top, below] }
  }

  /** _9C_2, ^9C_2, 9C2: behind the first mark, or the first number. */
  #combinations(first: Node | undefined): Node {
    const top = first ?? this.#script()
    const letter = this.#peek()?.text
    if (!this.#take('letter') || (letter !== 'C' && letter !== 'P'))
      throw new Unreadable('an index without a name')
    this.#take('sign', '_')
    const below = this.#script()
    return { type: 'call', name: letter === 'C' ? 'binomial' : 'permutations', items: [top, below] }
  }

  /** A name with its subscript. */
  #variable(name: string, isVector = false): Node {
    const full = this.#take('sign', '_') ? `${name}_${this.#raw()}` : name
    return isVector ? { type: 'variable', name: full, isVector } : { type: 'variable', name: full }
  }

  /** The next token or braced group as text. */
  #raw(): string {
    if (!this.#take('sign', '{')) {
      const token = this.#peek()
      this.#at++
      return token?.text ?? ''
    }
    let text = ''
    for (let depth = 1; ; this.#at++) {
      const token = this.#peek()
      if (!token) throw new Unreadable('a brace that is not closed')
      if (token.text === '{' && token.type === 'sign') depth++
      if (token.text === '}' && token.type === 'sign' && --depth === 0) {
        this.#at++
        return text
      }
      text += token.text
    }
  }

  #command(name: string): Node {
    switch (name) {
      case 'pi':
        return { type: 'constant', name: 'pi' }
      case 'infty':
        return { type: 'constant', name: 'infinity' }
      case 'emptyset':
        return { type: 'constant', name: 'empty' }
      case 'sum':
      case 'prod':
      case 'int':
      case 'lim':
        return this.#bound(name)
      case 'neg':
        return apply('¬', [this.#factor()])
      case 'frac':
        return this.#fraction()
      case 'binom':
        return { type: 'call', name: 'binomial', items: [this.#argument(), this.#argument()] }
      case 'sqrt':
        return this.#root()
      case 'cbrt':
        return { type: 'call', name: 'sqrt', items: [this.#operand(), integer(3)] }
      case 'norm': {
        const node = this.#list()
        if (!this.#take('command', 'norm')) throw new Unreadable('no closing \\|')
        return { type: 'call', name: 'norm', items: [node] }
      }
      case 'langle':
      case 'lfloor':
      case 'lceil':
        return this.#commandBrackets(name)
      case 'dollar':
      case 'euro':
      case 'pound':
      case 'yuan':
        this.#currency = `${name}s`
        return this.#signedFactor()
      case 'abs':
        return { type: 'call', name: 'abs', items: [this.#operand()] }
      case 'floor':
      case 'ceil':
        return { type: 'call', name, items: [this.#operand()] }
      case 'newline':
      case 'rangle':
      case 'rfloor':
      case 'rceil':
      case 'ldots':
        throw new Unreadable(`\\${name} where it makes no sense`)
    }
    const set = /^mathbb (.)$/.exec(name)?.[1]
    if (set && Object.hasOwn(numberSets, set)) return { type: 'constant', name: numberSets[set]! }
    if (accents.has(name)) return this.#accented(name)
    if (functions.has(name)) return this.#function(name)
    return this.#variable(`\\${name}`)
  }

  #fraction(): Node {
    const [left, right] = [this.#argument(), this.#argument()]
    const derivative = derivativeOf(left, right)
    if (!derivative) return quotientOf(left, right)
    const { name, of } = derivative
    return apply(name, [of ?? (this.#is('sign', '(') ? this.#factor() : this.#nested(() => this.#product()))])
  }

  /** \sum_{k=1}^{n} and what is added up; the same of products, integrals and limits. */
  #bound(kind: 'sum' | 'prod' | 'int' | 'lim'): Node {
    let from: Node | undefined
    let to: Node | undefined
    for (;;) {
      if (!from && this.#take('sign', '_'))
        from = this.#is('sign', '{') ? this.#nested(() => this.#primary()) : this.#script()
      else if (!to && this.#take('sign', '^')) to = this.#script()
      else break
    }
    if (kind === 'int') return this.#integral(from, to)
    const body = this.#nested(() => this.#signed())
    const name = from?.type === 'relation' ? nameOfBound(from.items[0]!) : undefined
    if (from?.type !== 'relation' || name === undefined) throw new Unreadable(`\\${kind} without a variable`)
    const bounds = [...from.items.slice(1), ...(to ? [to] : [])]
    return { type: 'bound', kind, variable: name, items: [withVariable(body, name), ...bounds] }
  }

  #integral(from: Node | undefined, to: Node | undefined): Node {
    this.#integrals++
    const body = this.#isDifferential() ? integer(1) : this.#nested(() => this.#sum())
    this.#integrals--
    if (!this.#isDifferential()) throw new Unreadable('an integral without its d')
    this.#at++
    const variable = this.#primary()
    if (variable.type !== 'variable') throw new Unreadable('an integral without its variable')
    const bounds = from && to ? [from, to] : []
    // Without bounds the variable is not bound.
    if (!from || !to) return apply(`∫ d${variable.name}`, [body])
    return { type: 'bound', kind: 'int', variable: variable.name, items: [body, ...bounds] }
  }

  /** dx, d\theta */
  #isDifferential(): boolean {
    const [letter, name] = [this.#peek(), this.#peek(1)]
    return (
      letter?.type === 'letter' &&
      letter.text === 'd' &&
      (name?.type === 'letter' || name?.type === 'command')
    )
  }

  /** An argument of \frac: braces, or one character. */
  #argument(): Node {
    return this.#nested(() => {
      const token = this.#peek()
      if (token?.type !== 'number' || token.text.length === 1) return this.#primary()
      if (!/^\d+$/.test(token.text)) throw new Unreadable('a decimal without braces')
      // \frac12: each takes one digit.
      const rest: Token = { ...token, text: token.text.slice(1), spaced: false }
      this.#tokens = this.#tokens.with(this.#at, rest)
      return decimal(token.text[0]!)
    })
  }

  #root(): Node {
    let index: Node | undefined
    if (this.#take('sign', '[')) {
      index = this.#sum()
      this.#expect('sign', ']')
    }
    const radicand = this.#operand()
    return { type: 'call', name: 'sqrt', items: index ? [radicand, index] : [radicand] }
  }

  /** What \sqrt takes: the next primary. */
  #operand(): Node {
    return this.#nested(() => this.#primary())
  }

  #accented(name: string): Node {
    const content = this.#raw()
    const isVector = /^(?:vec|overrightarrow|hat|widehat)$/.test(name)
    return this.#variable(`\\${name}(${content})`, isVector)
  }

  #function(name: string): Node {
    let power: Node | undefined
    let base: Node | undefined
    for (;;) {
      if (!power && this.#take('sign', '^')) power = this.#script()
      else if (!base && this.#take('sign', '_')) base = this.#script()
      else break
    }
    // "\gcd + 1" names what it is about.
    if (!this.#isSign() && !this.#isFactor()) return this.#variable(`\\${name}`)
    if (/^(?:gcd|lcm|max|min|det)$/.test(name) && this.#isSign()) return this.#variable(`\\${name}`)
    const isInverse =
      power?.type === 'minus' && power.item.type === 'number' && power.item.value.numerator === 1n
    const called = isInverse && inverses[name] ? inverses[name]! : name
    const node = this.#call(called, base, this.#functionArgument())
    return power && called === name ? { type: 'power', left: node, right: power } : node
  }

  #call(name: string, base: Node | undefined, argument: Node): Node {
    if (name === 'ln') return { type: 'call', name: 'log', items: [argument] }
    if (name === 'lg') return { type: 'call', name: 'log', items: [argument, integer(10)] }
    if (name === 'log') {
      if (!base) return { type: 'call', name: LOG, items: [argument] }
      return {
        type: 'call',
        name: 'log',
        items: base.type === 'constant' && base.name === 'e' ? [argument] : [argument, base],
      }
    }
    return { type: 'call', name, items: argument.type === 'list' ? argument.items : [argument] }
  }

  /** (…), or the factors up to the next function, sign or operator. */
  #functionArgument(): Node {
    if (this.#is('sign', '(') || this.#is('sign', '{')) {
      const node = this.#nested(() => this.#primary())
      // sin (x)^2 is (sin x)^2: the caller's postfix. A tuple is a list of arguments.
      return node.type === 'brackets' && node.open === '('
        ? { type: 'list', connector: ',', items: node.items }
        : node
    }
    const factors = [this.#isSign() ? this.#signedFactor() : this.#factor()]
    while (this.#isFactor() && !this.#isFunction() && !this.#is('sign', '(')) factors.push(this.#factor())
    return factors.length === 1 ? factors[0]! : { type: 'product', items: factors }
  }

  #isFunction(): boolean {
    const token = this.#peek()
    return token?.type === 'command' && functions.has(token.text)
  }

  #braced(): Node {
    if (this.#take('sign', '}')) throw new Unreadable('empty braces')
    const node = this.#over()
    this.#expect('sign', '}')
    return node
  }

  #absolute(): Node {
    const outer = this.#bars
    this.#bars = 1
    const item = this.#list()
    this.#bars = outer
    this.#expect('sign', '|')
    return { type: 'call', name: 'abs', items: [item] }
  }

  #brackets(open: string): Node {
    const outer = this.#bars
    this.#bars = 0
    if (open === '\\{' && this.#take('sign', '\\}')) return { type: 'constant', name: 'empty' }
    const first = this.#peek()
    if (open === '\\{' && this.#is('begin')) return this.#system(outer)
    if (open === '\\{' && this.#isSetBuilder()) {
      const condition = this.#list()
      this.#bars = outer
      this.#expect('sign', '\\}')
      return condition
    }
    const isInSet = this.#isInSet
    this.#isInSet = open === '\\{'
    if (open === '\\{') this.#bars = 1
    let inner = this.#list()
    // {kπ : k ∈ ℤ}
    if (open === '\\{' && (this.#take('sign', ':') || this.#take('sign', '|')))
      inner = { type: 'list', connector: ',', items: [inner, this.#list()] }
    this.#isInSet = isInSet
    this.#bars = outer
    const close = [')', ']', '\\}'].find(sign => this.#take('sign', sign))
    if (!close || (close === '\\}') !== (open === '\\{')) throw new Unreadable(`no ${closing[open]}`)
    if (inner.type === 'list' && inner.connector === ',')
      return { type: 'brackets', open, close, items: inner.items }
    // (12)_8
    if (open === '(' && this.#is('sign', '_') && inner.type === 'number') return this.#based(first!.text)
    if (open === '(' && close === ')') return inner
    // [x] groups within expressions.
    if (open === '[' && close === ']') return inner
    return { type: 'brackets', open, close, items: [inner] }
  }

  /** A brace on the left of rows that has no right one. */
  #system(bars: number): Node {
    const node = this.#primary()
    this.#take('sign', '\\}')
    this.#bars = bars
    return node.type === 'matrix' ? { type: 'list', connector: 'and', items: node.rows.flat() } : node
  }

  /** {x | …, {x : … and {x ∈ ℝ | …: takes all before the condition. */
  #isSetBuilder(): boolean {
    if (!this.#is('letter')) return false
    const isInReals = this.#peek(1)?.text === 'in' && this.#peek(2)?.text === 'mathbb R'
    const mark = this.#peek(isInReals ? 3 : 1)
    if (mark?.type !== 'sign' || (mark.text !== '|' && mark.text !== ':')) return false
    this.#at += isInReals ? 4 : 2
    return true
  }

  #commandBrackets(name: string): Node {
    const inner = this.#list()
    if (!this.#take('command', closingCommand[name]!)) throw new Unreadable(`no \\${closingCommand[name]}`)
    if (name === 'lfloor' || name === 'lceil') return { type: 'call', name: name.slice(1), items: [inner] }
    return { type: 'brackets', open: '(', close: ')', items: inner.type === 'list' ? inner.items : [inner] }
  }

  #matrix(environment: string): Node {
    const isCases = /^(?:d?cases|aligned|align|gathered)$/.test(environment)
    if (!isCases && !/^(?:[pbBvV]?matrix|smallmatrix|array)$/.test(environment)) {
      throw new Unreadable(`the environment ${environment}`)
    }
    const bars = this.#bars
    this.#bars = 0
    const rows: Node[][] = []
    let row: Node[] = []
    while (!this.#is('end')) {
      // "if x > 0", "otherwise"
      if (
        isCases &&
        row.length > 0 &&
        this.#is('text') &&
        /^(?:if|for|when|where)$/i.test(this.#peek()!.text)
      )
        this.#at++
      row.push(isCases && row.length > 0 ? this.#list() : this.#relation())
      if (isCases) while (this.#take('connector', ','));
      if (this.#take('sign', '&')) continue
      rows.push(row)
      row = []
      if (!this.#take('command', 'newline')) break
    }
    this.#bars = bars
    this.#expect('end', environment)
    if (rows.length === 0 || rows.some(({ length }) => length !== rows[0]!.length)) {
      throw new Unreadable('a matrix whose rows differ in length')
    }
    if (isCases) {
      if (rows[0]!.length > 2) throw new Unreadable('cases of more than two columns')
      return rows[0]!.length === 2
        ? { type: 'piecewise', items: rows.flat() }
        : { type: 'list', connector: 'and', items: rows.flat() }
    }
    const matrix: Node = { type: 'matrix', rows }
    return environment === 'vmatrix' ? { type: 'call', name: 'determinant', items: [matrix] } : matrix
  }
}

function apply(name: string, items: readonly Node[]): Node {
  return { type: 'apply', name, items }
}

/** f(x); (f ∘ g)(x) as f(g(x)). */
function applied(name: Node, items: readonly Node[]): Node {
  if (name.type !== 'apply') return apply(nameOfFunction(name), items)
  return applied(name.items[0]!, [applied(name.items[1]!, items)])
}

function nameOfFunction(node: Node): string {
  if (node.type === 'variable') return node.name
  const power = node.type === 'power' ? node.right : undefined
  const sign = power?.type === 'minus' ? '-' : ''
  const exponent = power?.type === 'minus' ? power.item : power
  if (node.type !== 'power' || node.left.type !== 'variable' || exponent?.type !== 'number')
    throw new Unreadable('what is no name of a function')
  return `${node.left.name}^${sign}${exponent.value.numerator}`
}

/** i is an index here, no number. */
function nameOfBound(node: Node): string | undefined {
  return node.type === 'variable' || (node.type === 'constant' && node.name === 'i') ? node.name : undefined
}

function withVariable(node: Node, name: string): Node {
  if (node.type === 'constant' && node.name === name) return { type: 'variable', name }
  return mapParts(node, part => withVariable(part, name))
}

function isNumber(node: Node): node is Node & { type: 'number' } {
  return node.type === 'number' && node.value.denominator === 1n
}

function valueOfWord(word: string): bigint | undefined {
  const node = numberInWords(word)
  return node?.type === 'number' ? node.value.numerator : undefined
}

function isVector(node: Node): boolean {
  if (node.type === 'variable') return node.isVector === true
  if (node.type === 'apply') return node.name === '×'
  return node.type === 'matrix' || (node.type === 'brackets' && node.open === '(')
}

function isTuple(node: Node): boolean {
  return node.type === 'brackets' && node.open === '(' && node.items.length > 1
}

/** A product in which the order counts: A⁻¹B, A^T B. */
function inOrder(factors: readonly Node[]): Node | undefined {
  const isCapital = (node: Node) => node.type === 'variable' && /^[A-Z]/.test(node.name)
  const isMatrix = (node: Node) =>
    node.type === 'power' &&
    isCapital(node.left) &&
    (node.right.type === 'minus' || (node.right.type === 'variable' && /^(?:T|\\top)$/.test(node.right.name)))
  if (factors.length < 2 || !factors.some(isMatrix)) return undefined
  const matrices = factors.filter(node => isMatrix(node) || isCapital(node))
  if (matrices.length < 2) return undefined
  return productOf(...factors.filter(node => !matrices.includes(node)), apply('matrix product', matrices))
}

/** dy/dx, d/dx, ∂f/∂x, d²y/dx² by their two halves. `of` is missing where the function follows. */
function derivativeOf(above: Node, below: Node): { name: string; of?: Node } | undefined {
  const [top, ...rest] = above.type === 'product' ? above.items : [above]
  const [bottom, ...by] = below.type === 'product' ? below.items : [below]
  const sign = (node: Node): string => {
    if (node.type === 'variable') return node.name
    return node.type === 'power' && isNumber(node.right)
      ? `${sign(node.left)}^${node.right.value.numerator}`
      : ''
  }
  if (!/^(?:d|\\partial)(?:\^\d+)?$/.test(sign(top!)) || sign(top!)[0] !== sign(bottom!)[0]) return undefined
  if (by.length === 0 || by.some(part => sign(part) === '')) return undefined
  const name = `${sign(top!)}/${[bottom!, ...by].map(sign).join('')}`
  return rest.length === 0 ? { name } : { name, of: productOf(...rest) }
}

/** "The answer is", "x equals", 答案是 */
function isIntroduction(text: string): boolean {
  return (
    /(?:\b(?:is|are|equals?|be)|[:=])\s*$|(?:是|为|等于)$/i.test(text) &&
    !/\b(?:not|n't|never|cannot|maybe|perhaps)\b|n't|不/i.test(text)
  )
}

function marked(type: 'percent' | 'degrees', item: Node): Node {
  if (item.type === type) throw new Unreadable(`${type} of ${type}`)
  return { type, item }
}

function isPunctuation(token: Token): boolean {
  if (token.type === 'command') return token.text === 'newline'
  return (token.type === 'sign' && ['.', ':', '?'].includes(token.text)) || token.type === 'connector'
}

/** Two quantities of the same kind, the larger unit first, as one in that unit. */
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

function primed(node: Node): Node {
  if (node.type !== 'variable') throw new Unreadable("a ' after what is no name")
  return { type: 'variable', name: `${node.name}'` }
}
