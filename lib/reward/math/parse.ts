/** Tokens to a tree: recursive descent over the notation that answers use. */

import { Budget, Unreadable } from './budget.js'
import { powerRational, type Rational, rational } from './rational.js'
import { type Reading, type Token, tokenize } from './tokens.js'
import type { Connector, Node, NodeOf, Relation } from './tree.js'
import { haveSameDimensions, isKnown, readUnit } from './units.js'

/** log without a base: 10 or e, as the other side has it. */
export const LOG = 'log of unknown base'
/** Deeper nesting is refused. */
const MAX_DEPTH = 60
const MAX_TOKENS = 1000
/** Of a number: longer ones are refused. */
const MAX_DIGITS = 1000
/** Larger powers of ten in scientific notation stay powers. */
const MAX_SCALE = 1000n

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
  'times div pm mp newline rangle rfloor rceil not over choose dollar euro pound'.split(' '),
)
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
const numberWords = new Map(
  (
    'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen ' +
    'seventeen eighteen nineteen twenty'
  )
    .split(' ')
    .map((word, value) => [word, value] as const),
)
const tens = new Map(
  'twenty thirty forty fifty sixty seventy eighty ninety'.split(' ').map((word, i) => [word, 10 * (i + 2)]),
)
const sizes = new Map([
  ['hundred', 100n],
  ['thousand', 1000n],
  ['million', 10n ** 6n],
  ['billion', 10n ** 9n],
  ['trillion', 10n ** 12n],
])
const half: Node = {
  type: 'quotient',
  left: integer(1),
  right: integer(2),
}

function integer(value: number): Node {
  return { type: 'number', value: rational(BigInt(value)), digits: 1 }
}

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
  /** A currency sign was read in this expression. */
  #currency: string | undefined

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
      this.#at += isNegated ? 2 : 1
      // Plain text: <= and >=.
      const hasEquals = (sign === '<' || sign === '>') && this.#take('sign', '=')
      signs.push(isNegated ? '!=' : hasEquals ? `${sign}=` : sign)
      items.push(this.#quantity())
    }
    // "≈ 1.4" alone.
    return signs.length === 0 ? items[0]! : { type: 'relation', signs, items }
  }

  /** An expression and its unit; or text. */
  #quantity(): Node {
    while (this.#isLabel()) this.#at += 2
    const isText = this.#is('text')
    const outer = this.#currency
    this.#currency = undefined
    if (isText) {
      const { text } = this.#peek()!
      // "The answer is 17", "x equals 3"
      if (/(?:\b(?:is|are|equals?|be)|[:=])\s*$/i.test(text) && this.#peek(1)) this.#at++
      else return this.#text()
    }
    this.#take('command', 'approx')
    let node = this.#sets()
    // 18\$
    if (this.#isCurrency()) this.#currency = `${this.#tokens[this.#at++]!.text}s`
    let unit: string | undefined = this.#currency
    this.#currency = outer
    if (this.#is('text') || this.#isUnitFraction()) unit = this.#unit()
    if (unit !== undefined) {
      const [word, rest] = splitFirst(unit)
      const size = sizes.get(word)
      if (size !== undefined) {
        node = { type: 'product', items: [node, { type: 'number', value: rational(size), digits: 1 }] }
        unit = rest === '' ? undefined : rest
      }
    }
    if (unit !== undefined && /^\s*rad(?:ian)?s?\s*$/i.test(unit)) return node
    if (unit !== undefined && /^\s*(?:percent|per cent|%)\s*$/i.test(unit)) node = marked('percent', node)
    else if (unit !== undefined && /^\s*degrees?\s*$/i.test(unit)) node = marked('degrees', node)
    else if (unit !== undefined) {
      node = { type: 'quantity', item: node, unit }
      // 2 hours 30 minutes
      const start = this.#at
      const rest = this.#is('number') ? this.#quantity() : undefined
      const whole = rest && addQuantities(node, rest)
      if (whole) return whole
      this.#at = start
    }
    return node
  }

  /** "Answer: 60" */
  #isLabel(): boolean {
    const [label, colon, rest] = [this.#peek(), this.#peek(1), this.#peek(2)]
    return (
      label?.type === 'text' &&
      /^(?:the )?(?:final )?answer$/i.test(label.text) &&
      colon?.type === 'sign' &&
      colon.text === ':' &&
      rest !== undefined
    )
  }

  #isCurrency(): boolean {
    return ['dollar', 'euro', 'pound'].some(name => this.#is('command', name))
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
    const value = numberWords.get(word) ?? tens.get(word)
    if (value !== undefined) return integer(value)
    const [, ten, one] = /^([a-z]+ty)[- ]([a-z]+)$/.exec(word) ?? []
    const [round, digit] = [tens.get(ten ?? ''), numberWords.get(one ?? '')]
    if (round !== undefined && digit !== undefined && digit > 0 && digit < 10) return integer(round + digit)
    if (/^(?:all |the )?real numbers$|^all reals?$/.test(word)) return { type: 'constant', name: 'reals' }
    if (/^(?:no (?:real )?solutions?|none|(?:the )?empty set)$/.test(word))
      return { type: 'constant', name: 'empty' }
    if (word === 'one half' || word === 'half' || word === 'one-half') return half
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
    const join = (): Node => (factors.length === 1 ? factors[0]! : { type: 'product', items: factors })
    for (;;) {
      if (this.#take('sign', '*') || this.#take('command', 'times')) factors.push(this.#signedFactor())
      else if (this.#take('sign', '/') || this.#take('command', 'div')) {
        factors = [{ type: 'quotient', left: join(), right: this.#signedFactor() }]
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
      case 'number':
      case 'letter':
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
      else if (this.#take('sign', '!')) node = { type: 'call', name: 'factorial', items: [node] }
      else if (this.#take('sign', '%')) node = marked('percent', node)
      else if (this.#take('sign', "'")) node = primed(node)
      else return node
    }
  }

  #power(base: Node): Node {
    const isBraced = this.#is('sign', '{')
    const [mark, close] = isBraced ? [this.#peek(1), this.#peek(2)] : [this.#peek(), undefined]
    if (mark?.text === 'circ' && (!isBraced || close?.text === '}')) {
      this.#at += isBraced ? 3 : 1
      // Temperatures
      if (this.#is('letter', 'C') || this.#is('letter', 'F')) this.#at++
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
      token?.type === 'number' ? Number(token.text) : numberWords.get(token?.text.toLowerCase() ?? '')
    if (base === undefined || base < 2 || base > 36) throw new Unreadable('a subscript that is no base')
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
        return this.#letter(token.text)
      case 'command':
        return this.#command(token.text)
      case 'begin':
        return this.#matrix(token.text)
      case 'sign':
        if (token.text === '{') return this.#braced()
        if (token.text === '|') return this.#absolute()
        if (Object.hasOwn(closing, token.text)) return this.#brackets(token.text)
        break
    }
    throw new Unreadable(`"${token.text}" where a number or name is expected`)
  }

  #number({ text }: Token): Node {
    if (/[A-Z]/.test(text)) return this.#lettersInBase(text)
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
    if (text.length + digits.text.length > MAX_DIGITS) throw new Unreadable('a number that is too long')
    const fixed = text.split('.')[1] ?? ''
    const [all, head] = [text.replace('.', '') + digits.text, text.replace('.', '')]
    const scale = 10n ** BigInt(fixed.length) * (10n ** BigInt(digits.text.length) - 1n)
    return { type: 'number', value: rational(BigInt(all) - BigInt(head || '0'), scale), digits: all.length }
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

  #letter(letter: string): Node {
    if (letter === 'e') return { type: 'constant', name: 'e' }
    if (letter === 'i') return { type: 'constant', name: 'i' }
    return this.#variable(letter)
  }

  /** A name with its subscript. */
  #variable(name: string): Node {
    if (!this.#take('sign', '_')) return { type: 'variable', name }
    return { type: 'variable', name: `${name}_${this.#raw()}` }
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
      case 'mathbb R':
        return { type: 'constant', name: 'reals' }
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
    if (accents.has(name)) return this.#accented(name)
    if (functions.has(name)) return this.#function(name)
    return this.#variable(`\\${name}`)
  }

  #fraction(): Node {
    return { type: 'quotient', left: this.#argument(), right: this.#argument() }
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
    return this.#variable(`\\${name}(${content})`)
  }

  #function(name: string): Node {
    let power: Node | undefined
    let base: Node | undefined
    for (;;) {
      if (!power && this.#take('sign', '^')) power = this.#script()
      else if (!base && this.#take('sign', '_')) base = this.#script()
      else break
    }
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
    if (open === '\\{' && this.#isSetBuilder()) {
      const condition = this.#list()
      this.#bars = outer
      this.#expect('sign', '\\}')
      return condition
    }
    const inner = this.#list()
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
    if (!/^(?:[pbBvV]?matrix|smallmatrix|array)$/.test(environment)) {
      throw new Unreadable(`the environment ${environment}`)
    }
    const rows: Node[][] = []
    let row: Node[] = []
    while (!this.#is('end')) {
      row.push(this.#relation())
      if (this.#take('sign', '&')) continue
      rows.push(row)
      row = []
      if (!this.#take('command', 'newline')) break
    }
    this.#expect('end', environment)
    if (rows.length === 0 || rows.some(({ length }) => length !== rows[0]!.length)) {
      throw new Unreadable('a matrix whose rows differ in length')
    }
    const matrix: Node = { type: 'matrix', rows }
    return environment === 'vmatrix' ? { type: 'call', name: 'determinant', items: [matrix] } : matrix
  }
}

/** Digits, perhaps with a point, in another base than ten. */
function based(text: string, base: number): Node {
  if (!/^[0-9A-Z]+(?:\.\d+)?$/.test(text)) throw new Unreadable('no number in another base')
  const digits = text.replace('.', '')
  if ([...digits].some(digit => Number.parseInt(digit, 36) >= base)) {
    throw new Unreadable(`a digit that base ${base} has not`)
  }
  if (digits.length > MAX_DIGITS) throw new Unreadable(`a number of more than ${MAX_DIGITS} digits`)
  return { type: 'based', digits, places: text.split('.')[1]?.length ?? 0, base }
}

/** 05:00 can only be a time; two digits below 60 behind each colon are a time or a ratio. */
function kindOfRatio(written: string): NodeOf<'ratio'>['kind'] {
  if (/(?:^|:)0(?!\.)/.test(written)) return 'time'
  return /^\d\d?(?::[0-5]\d)+$/.test(written) ? 'time or ratio' : 'ratio'
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

function ordinalEnding(n: bigint): string {
  if (n % 100n >= 11n && n % 100n <= 13n) return 'th'
  return ({ 1: 'st', 2: 'nd', 3: 'rd' } as Record<string, string>)[String(n % 10n)] ?? 'th'
}

function primed(node: Node): Node {
  if (node.type !== 'variable') throw new Unreadable("a ' after what is no name")
  return { type: 'variable', name: `${node.name}'` }
}

function splitFirst(text: string): [word: string, rest: string] {
  const [word = '', ...rest] = text.trim().split(/\s+/)
  return [word.toLowerCase(), rest.join(' ')]
}

/** Digits, a point, more digits, a power of ten. */
function decimal(text: string): Node {
  const [, whole = '', fraction = '', exponent = '0'] =
    /^(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d+))?$/.exec(text) ?? []
  if (text.length > MAX_DIGITS) throw new Unreadable(`a number of more than ${MAX_DIGITS} digits`)
  const value: Rational = rational(BigInt(whole + fraction || '0'), 10n ** BigInt(fraction.length))
  const node: Node = { type: 'number', value, digits: whole.length + fraction.length }
  const scale = BigInt(exponent)
  if (scale === 0n) return node
  const ten: Node = { type: 'number', value: rational(10n), digits: 2 }
  if (scale > MAX_SCALE || scale < -MAX_SCALE) {
    const power: Node = { type: 'number', value: rational(scale), digits: 1 }
    return { type: 'product', items: [node, { type: 'power', left: ten, right: power }] }
  }
  const power = powerRational(rational(10n), scale, new Budget(10_000))
  return { type: 'product', items: [node, { type: 'number', value: power, digits: 2 }] }
}
