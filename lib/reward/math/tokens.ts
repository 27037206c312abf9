/** Splits an answer, LaTeX or plain text, into tokens. Markup is dropped, and spellings of the same thing become one. */
import { Unreadable } from './budget.js'
import type { Connector } from './tree.js'
import { isUnitWord } from './units.js'

export type Token = {
  /** Whether white space, or a command for it, stands before the token. */
  readonly spaced: boolean
} & (
  | { readonly type: 'number'; readonly text: string }
  | { readonly type: 'letter'; readonly text: string; readonly isBold?: true }
  /** A LaTeX command, without the backslash; plain words such as sin and sqrt too. */
  | { readonly type: 'command'; readonly text: string }
  | { readonly type: 'text'; readonly text: string }
  | { readonly type: 'connector'; readonly text: Connector }
  | { readonly type: 'begin' | 'end'; readonly text: string }
  /** One character; `\{` and `\}` are '\\{' and '\\}'. */
  | { readonly type: 'sign'; readonly text: string }
)

/** Longer answers are compared as text only. */
export const MAX_ANSWER = 4096

const unicode: Readonly<Record<string, string>> = {
  '∞': '\\infty ',
  '×': '\\times ',
  '⋅': '\\cdot ',
  '·': '\\cdot ',
  '∙': '\\cdot ',
  '÷': '\\div ',
  '−': '-',
  '–': '-',
  '—': '-',
  '≤': '\\le ',
  '⩽': '\\le ',
  '≥': '\\ge ',
  '⩾': '\\ge ',
  '≠': '\\ne ',
  '≈': '\\approx ',
  '≡': '\\equiv ',
  '∪': '\\cup ',
  '∩': '\\cap ',
  '∈': '\\in ',
  '∅': '\\emptyset ',
  ℝ: '\\mathbb{R}',
  ℤ: '\\mathbb{Z}',
  ℕ: '\\mathbb{N}',
  ℚ: '\\mathbb{Q}',
  ℂ: '\\mathbb{C}',
  '∖': '\\setminus ',
  '°': '^\\circ ',
  º: '^\\circ ',
  '∘': '\\circ ',
  '∧': '\\land ',
  '∨': '\\lor ',
  '¬': '\\neg ',
  '→': '\\to ',
  '⇒': '\\to ',
  '↔': '\\iff ',
  '⇔': '\\iff ',
  '∑': '\\sum ',
  '∏': '\\prod ',
  '∫': '\\int ',
  '∂': '\\partial ',
  '⌊': '\\lfloor ',
  '⌋': '\\rfloor ',
  '⌈': '\\lceil ',
  '⌉': '\\rceil ',
  '‖': '\\|',
  '∥': '\\|',
  '∣': '|',
  '…': '\\ldots ',
  '⋯': '\\ldots ',
  '±': '\\pm ',
  '∓': '\\mp ',
  '√': '\\sqrt ',
  '∛': '\\sqrt[3] ',
  '½': '\\frac12 ',
  '¼': '\\frac14 ',
  '¾': '\\frac34 ',
  '⅓': '\\frac13 ',
  '⅔': '\\frac23 ',
  '⟨': '\\langle ',
  '⟩': '\\rangle ',
  '⁻': '^-',
  '⁄': '/',
  '’': "'",
  '′': "'",
  '。': '.',
  '、': ',',
  '€': '\\euro ',
  '£': '\\pound ',
  '¥': '\\yuan ',
  '△': '\\triangle ',
  '∠': '\\angle ',
  μ: '\\mu ',
  µ: '\\mu ',
}
const greek =
  'alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho  sigma tau upsilon phi chi psi omega'.split(
    ' ',
  )
greek.forEach((name, i) => {
  if (name === '') return
  const letters = unicode as Record<string, string>
  letters[String.fromCharCode(0x3b1 + i)] = `\\${name} `
  if (/^(?:gamma|delta|theta|lambda|xi|pi|sigma|phi|psi|omega)$/.test(name))
    letters[String.fromCharCode(0x391 + i)] = `\\${name[0]!.toUpperCase()}${name.slice(1)} `
})
const superscripts = '⁰¹²³⁴⁵⁶⁷⁸⁹'
const subscripts = '₀₁₂₃₄₅₆₇₈₉'

/** Commands that only change the look. */
const looks = new Set(
  (
    'left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr middle displaystyle textstyle ' +
    'scriptstyle limits nolimits boldsymbol bm mathop mathord mathbin mathrel mathstrut rm bf it sf tt ' +
    'boxed fbox framebox ensuremath smash cancel small large Large normalsize tiny huge ' +
    'underline triangle angle'
  ).split(' '),
)
const spaces = new Set(
  'quad qquad hspace enspace thinspace medspace thickspace space negthinspace'.split(' '),
)
/** Commands whose argument is ignored. */
const dropped = new Set('hspace phantom hphantom vphantom color textcolor colorbox'.split(' '))
const textCommands = new Set('text mbox textrm textnormal hbox textup textsf texttt'.split(' '))
/** Around words, these commands make text. Around anything else, they only change the look. */
const fontCommands = new Set(
  'mathrm mathbf mathit mathsf mathtt textbf textit emph operatorname mathcal mathscr'.split(' '),
)
const synonyms: Readonly<Record<string, string>> = {
  dfrac: 'frac',
  tfrac: 'frac',
  cfrac: 'frac',
  nicefrac: 'frac',
  sfrac: 'frac',
  textdollar: 'dollar',
  dbinom: 'binom',
  tbinom: 'binom',
  leq: 'le',
  leqslant: 'le',
  geq: 'ge',
  geqslant: 'ge',
  lt: 'less',
  gt: 'greater',
  neq: 'ne',
  ast: 'times',
  land: '∧',
  wedge: '∧',
  lor: '∨',
  vee: '∨',
  lnot: 'neg',
  rightarrow: 'to',
  longrightarrow: 'to',
  implies: 'to',
  Rightarrow: 'to',
  Leftrightarrow: 'iff',
  leftrightarrow: 'iff',
  bmod: 'mod',
  lVert: 'norm',
  rVert: 'norm',
  Vert: 'norm',
  varnothing: 'emptyset',
  backslash: 'setminus',
  lbrack: 'bracket-open',
  rbrack: 'bracket-close',
  lvert: 'vertical',
  rvert: 'vertical',
  vert: 'vertical',
  mid: 'vertical',
  varphi: 'phi',
  varepsilon: 'epsilon',
  vartheta: 'theta',
  arcctg: 'arccot',
  tg: 'tan',
  ctg: 'cot',
  cosec: 'csc',
  asin: 'arcsin',
  acos: 'arccos',
  atan: 'arctan',
  sim: 'approx',
  simeq: 'approx',
  cong: 'approx',
  infinity: 'infty',
  inf: 'infty',
  oo: 'infty',
  prime: "'",
  colon: ':',
  dots: 'ldots',
  cdots: 'ldots',
}
const signs: Readonly<Record<string, string>> = {
  less: '<',
  greater: '>',
  'bracket-open': '[',
  'bracket-close': ']',
  vertical: '|',
  lbrace: '\\{',
  rbrace: '\\}',
  "'": "'",
  ':': ':',
}
const plainCommands = new Set(
  (
    'sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh asin acos atan ' +
    'ln log exp lg cis sqrt cbrt pi infty infinity inf oo theta alpha beta gamma lambda abs floor ceil gcd lcm det max mod'
  ).split(' '),
)
/** In front of an amount. */
const currencies = new Map([
  ['USD', 'dollar'],
  ['EUR', 'euro'],
  ['Rs', 'rupee'],
  ['INR', 'rupee'],
])
/** Words that are read as words although they are short. */
const shortWords = new Set(
  'yes no one two six ten odd red all not is are the an of if for any where with per'.split(' '),
)

/** Facts about an answer that follow from the other answer. */
export interface Reading {
  /** Whether a comma between digits separates numbers even where it could group thousands. */
  readonly commasSeparate?: boolean
  /** Whether the other answer has no variables. A unit's letter, or a word, behind a number and white space is then a unit. */
  readonly lettersAreUnits?: boolean
  /** Whether 2,74 is 2.74, because the other answer is not a list. */
  readonly commasAreDecimal?: boolean
}

/** Throws Unreadable. */
export function tokenize(source: string, reading: Reading = {}): Token[] {
  if (source.length > MAX_ANSWER) throw new Unreadable(`longer than ${MAX_ANSWER} characters`)
  let text = replaceUnicode(source)
  // ]1, 2[ for (1, 2)
  if (/^\s*\]/.test(text)) text = text.replace(']', '(')
  if (/\[\s*$/.test(text) && /[,;]/.test(text)) text = `${text.slice(0, text.lastIndexOf('['))})`
  return joinedByOr(new Tokenizer(text, reading).run())
}

/** x < −3 ∪ x > 3, where ∪ stands between inequalities. */
function joinedByOr(tokens: Token[]): Token[] {
  const isSign = (texts: string) => (token: Token) =>
    token.type !== 'text' && texts.split(' ').includes(token.text)
  if (!tokens.some(isSign('cup')) || !tokens.some(isSign('< > le ge')) || tokens.some(isSign('( [ \\{')))
    return tokens
  return tokens.map(token => (token.text === 'cup' ? { ...token, type: 'connector', text: 'or' } : token))
}

/** Typographic characters in LaTeX's spelling. */
export function replaceUnicode(source: string): string {
  if (/^[\x20-\x7e]*$/.test(source)) return source
  let text = ''
  for (const character of source.normalize('NFC')) {
    const [up, down] = [superscripts.indexOf(character), subscripts.indexOf(character)]
    if (up >= 0) text += `${text.endsWith('^-') || /\^\{?\d*$/.test(text.slice(-8)) ? '' : '^'}${up}`
    else if (down >= 0) text += `${/_\d*$/.test(text.slice(-8)) ? '' : '_'}${down}`
    else if (/[\u200b-\u200d\u2060\ufeff]/.test(character)) continue
    // Full-width forms of the ASCII characters.
    else if (/[\uff01-\uff5e]/.test(character)) text += String.fromCharCode(character.charCodeAt(0) - 0xfee0)
    else text += unicode[character] ?? (/\s/.test(character) ? ' ' : character)
  }
  return text
}

const groupedExplicitly = /[1-9]\d{0,2}(?:(?:,\\!\s*|\\!,|\{,\}|\\,\s*|,\\[,;:]\s*|')\d{3})+(?!\d)/y
const groupedByCommas = /[1-9]\d{0,2}(?:,\d{3})+(?!\d)/y
const groupedBySpaces = /[1-9]\d{0,2}(?: \d{3})+(?!\d)/y
const plainNumber = /\d+/y
const decimals = /\.\d+/y
/** 2{,}74, as LaTeX in German and French has it. */
const decimalsByBracedComma = /\{,\}\d+/y
const decimalsByComma = /(?:,|\{,\})\d+(?![,.\d])/y
const numberWord =
  /(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)-(?:one|two|three|four|five|six|seven|eight|nine)(?![a-z])/iy
const foreignWord = /[A-Za-z\u00c0-\u024f]+/y
const powerOfTen = /[eE][+-]?\d{1,9}(?![\d.])/y
const digitsInBase = /[0-9A-Z]+(?=_\{?\d)/y

class Tokenizer {
  readonly #source: string
  readonly #reading: Reading
  readonly #tokens: Token[] = []
  #at = 0
  #spaced = false
  /** Depth of ( [ \{, inside which commas separate. */
  #depth = 0
  /** Whether a sum was read, since 3 + 2 m is not five meters. */
  #hasSum = false

  constructor(source: string, reading: Reading) {
    this.#source = source
    this.#reading = reading
  }

  run(): Token[] {
    while (this.#at < this.#source.length) this.#next()
    return this.#tokens
  }

  /** Stück, élèves */
  #foreignWord(): string | undefined {
    foreignWord.lastIndex = this.#at
    const word = foreignWord.exec(this.#source)?.[0]
    if (word === undefined || /^[A-Za-z]+$/.test(word)) return undefined
    this.#at += word.length
    return word
  }

  #push(token: { type: Token['type']; text: string }): void {
    this.#tokens.push({ ...token, spaced: this.#spaced } as Token)
    this.#spaced = false
  }

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at
    const match = pattern.exec(this.#source)?.[0]
    if (match !== undefined) this.#at += match.length
    return match
  }

  #next(): void {
    const character = this.#source[this.#at]!
    const foreign = /[A-Za-z\u00c0-\u024f]/.test(character) ? this.#foreignWord() : undefined
    if (foreign !== undefined) this.#text(foreign)
    else if (/[\s~$]/.test(character)) {
      this.#at++
      this.#spaced = true
    } else if (character === '\\') this.#command()
    else if (/\d/.test(character) || (character === '.' && /\d/.test(this.#source[this.#at + 1] ?? '')))
      this.#number()
    else if (/[A-Za-z]/.test(character)) this.#word()
    else if (/\p{L}/u.test(character)) this.#text(this.#match(/[\p{L}\p{M}]+(?: [\p{L}\p{M}]{3,})*/uy)!)
    else if (this.#isUnequal()) this.#push({ type: 'command', text: 'ne' })
    else if (this.#match(/<=>/y)) this.#push({ type: 'command', text: 'iff' })
    else if (this.#match(/[-=]>/y)) this.#push({ type: 'command', text: 'to' })
    else if (this.#match(/\.\.\.+/y)) this.#push({ type: 'command', text: 'ldots' })
    else {
      this.#at++
      if (character === ',' || character === ';') this.#push({ type: 'connector', text: ',' })
      else this.#sign(character)
    }
  }

  /** x != 3; but 5!=120 is a factorial. */
  #isUnequal(): boolean {
    const previous = this.#tokens.at(-1)
    if (previous && isAfterNumber(previous) && !this.#spaced) return false
    return this.#match(/!=/y) !== undefined
  }

  #sign(text: string): void {
    if ('([\\{'.includes(text)) this.#depth++
    if (')]\\}'.includes(text)) this.#depth--
    const previous = this.#tokens.at(-1)
    if (text === '+' || (text === '-' && previous && isAfterNumber(previous))) this.#hasSum = true
    this.#push({ type: 'sign', text })
  }

  #number(): void {
    const based = this.#isCombination() ? undefined : this.#match(digitsInBase)
    if (based && (based.length > 1 || this.#source[this.#at] === '_')) {
      this.#push({ type: 'number', text: based })
      return
    }
    const start = this.#at
    const mayGroup = this.#depth <= 0 && !this.#reading.commasSeparate
    const whole =
      this.#match(groupedExplicitly) ??
      (mayGroup ? this.#match(groupedByCommas) : undefined) ??
      this.#match(groupedBySpaces) ??
      this.#match(plainNumber) ??
      ''
    const isGrouped = /^[1-9]\d{0,2},\d{3}(?!\d)/.test(this.#source.slice(start, start + 8))
    const fraction =
      this.#match(decimals) ??
      this.#match(decimalsByBracedComma) ??
      (this.#reading.commasAreDecimal && !isGrouped ? this.#match(decimalsByComma) : undefined)
    const text =
      whole.replaceAll(/\D/g, '') +
      (fraction ?? '').replace(/^[,{}]+/, '.') +
      (this.#match(powerOfTen)?.toLowerCase() ?? '')
    this.#push({ type: 'number', text })
    // 4th
    if (/^\d+$/.test(text)) this.#match(/(?:st|nd|rd|th)(?![A-Za-z])/y)
  }

  /** 9C_2, whose digits are impossible in base 2. */
  #isCombination(): boolean {
    const base = /^\d+[CP]_\{?(\d+)/.exec(this.#source.slice(this.#at, this.#at + 20))?.[1]
    return base !== undefined && Number(base) < 13
  }

  #word(): void {
    const based = this.#match(/[0-9A-Z]+(?=_\{?(?:1[1-9]|[23]\d)(?!\d))/y)
    if (based && /\d/.test(based)) {
      this.#push({ type: 'number', text: based })
      return
    }
    if (based) this.#at -= based.length
    // 9:30 a.m.
    const half = this.#tokens.at(-1)?.type === 'number' && this.#match(/[ap]\.\s?m\b\.?/iy)
    if (half) {
      this.#text(half)
      return
    }
    const word = this.#match(numberWord) ?? this.#match(/o['’]clock|[A-Za-z]+/y)!
    const lower = word.toLowerCase()
    const previous = this.#tokens.at(-1)
    if (lower === 'or' || lower === 'and') this.#connector(lower)
    else if (lower === 'union' || (word === 'U' && this.#isBetweenSets()))
      this.#push({ type: 'command', text: 'cup' })
    else if (this.#isPlainUnit(word)) this.#unit(word)
    else if (plainCommands.has(word)) this.#named(word)
    else if (this.#tokens.length === 0 && /^(?:minus|negative)$/.test(lower)) this.#sign('-')
    else if (currencies.has(word) && !(previous && isAfterNumber(previous))) this.#text(word)
    else if (word === 'to' && previous?.type === 'number') this.#sign(':')
    else if (lower.length > 1 && previous && isAfterNumber(previous) && isUnitWord(word)) this.#unit(word)
    else if (previous?.type === 'text' && this.#spaced && word.length > 1) this.#text(word)
    else if (word.length >= 4 || shortWords.has(lower)) this.#text(word)
    else {
      for (const letter of word) this.#push({ type: 'letter', text: letter })
    }
  }

  /** The m of "5 m", the h of "5 km/h". */
  #isPlainUnit(word: string): boolean {
    const [amount, previous] = this.#tokens.slice(-2)
    const isLong = word.length >= 3 && !plainCommands.has(word)
    if (amount?.type === 'text' && previous?.type === 'sign' && previous.text === '/')
      return isLong || isUnitWord(word)
    const last = previous ?? amount
    if (!this.#reading.lettersAreUnits || !this.#spaced || !last || this.#hasSum) return false
    const isAmount = isAfterNumber(last) || (last.type === 'command' && last.text === 'pi')
    return isAmount && (isLong || isUnitWord(word))
  }

  #unit(word: string): void {
    this.#text(word)
    // sq. ft.
    this.#match(/\.(?!\d)/y)
  }

  /** The U of (−∞, 2) U (3, ∞). */
  #isBetweenSets(): boolean {
    const previous = this.#tokens.at(-1)
    return (
      previous?.type === 'sign' &&
      /[)\]]/.test(previous.text) &&
      /^\s*[([]/.test(this.#source.slice(this.#at))
    )
  }

  #connector(text: Connector): void {
    this.#push({ type: 'connector', text })
  }

  #text(text: string): void {
    const previous = this.#tokens.at(-1)
    const isBeforeNumber = /^\s*\d/.test(this.#source.slice(this.#at, this.#at + 10))
    const currency = isBeforeNumber ? currencies.get(text) : undefined
    if (/^(?:in )?base$/i.test(text) && previous?.type === 'number') this.#sign('_')
    else if (currency) this.#push({ type: 'command', text: currency })
    else if (previous?.type === 'text') {
      this.#tokens[this.#tokens.length - 1] = { ...previous, text: `${previous.text} ${text}` }
      this.#spaced = false
    } else this.#push({ type: 'text', text })
  }

  #command(): void {
    const name = this.#match(/\\(?:[A-Za-z]+\*?|.|$)/sy)!
      .slice(1)
      .replace('*', '')
    if (textCommands.has(name)) {
      const content = this.#group()
      if (this.#isFunction(content.trim())) this.#named(content.trim())
      else this.#textGroup(content)
    } else if (fontCommands.has(name)) this.#fontGroup(this.#group(), name === 'mathbf')
    else if (name === 'mathbb' || name === 'Bbb')
      this.#push({ type: 'command', text: `mathbb ${this.#group()}` })
    else if (name === 'begin' || name === 'end') this.#environment(name)
    else if (dropped.has(name)) {
      this.#group()
      this.#spaced = true
    } else if (/^[,:;!>\s()[\]]?$/.test(name) || spaces.has(name)) {
      // \( … \) and \[ … \] are dollar signs, the rest is white space.
      this.#spaced = true
    } else if (name === '{' || name === '}') this.#sign(`\\${name}`)
    else if (name === '\\') {
      // With the space between two rows of a matrix.
      this.#match(/\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]/y)
      this.#push({ type: 'command', text: 'newline' })
    } else if (/^[a-zA-Z:]/.test(name)) this.#named(name)
    else if (name === '%') this.#push({ type: 'sign', text: '%' })
    else if (name === '$') this.#push({ type: 'command', text: 'dollar' })
    else if (name === '|') this.#push({ type: 'command', text: 'norm' })
    else this.#push({ type: 'sign', text: name })
  }

  #named(name: string): void {
    if (looks.has(name)) {
      // \left. and \right. have no visible sign.
      if (/^(left|right)$/.test(name) && this.#source[this.#at] === '.') this.#at++
      // ]1, 2[ for (1, 2)
      if (name === 'left' && this.#match(/\s*\]/y)) this.#sign('(')
      if (name === 'right' && this.#match(/\s*\[/y)) this.#sign(')')
      return
    }
    if (/^(?:text)?degrees?$/.test(name)) {
      const previous = this.#tokens.at(-1)
      if (previous?.type !== 'sign' || previous.text !== '^') this.#sign('^')
      this.#push({ type: 'command', text: 'circ' })
      return
    }
    const known = synonyms[name] ?? name
    const sign = signs[known]
    if (known === 'and' || known === 'or' || known === '∧' || known === '∨') this.#connector(known)
    else if (sign !== undefined) this.#sign(sign)
    else this.#push({ type: 'command', text: known })
  }

  /** The content of the braces that follow, or the one character. */
  #group(): string {
    this.#match(/\s+/y)
    if (this.#source[this.#at] !== '{') return this.#match(/\\[A-Za-z]+|./sy) ?? ''
    let depth = 0
    const start = this.#at + 1
    for (; this.#at < this.#source.length; this.#at++) {
      const character = this.#source[this.#at]
      if (character === '\\') this.#at++
      else if (character === '{') depth++
      else if (character === '}' && --depth === 0) return this.#source.slice(start, this.#at++)
    }
    throw new Unreadable('a brace that is not closed')
  }

  #environment(type: 'begin' | 'end'): void {
    const text = this.#group().replace('*', '')
    if (type === 'begin' && text === 'array') this.#group()
    this.#depth += type === 'begin' ? 1 : -1
    this.#push({ type, text })
  }

  /** \text{…}: connectors, numbers and words apart. */
  #textGroup(content: string): void {
    // \text{\$18}, \text{1,000 miles}
    const [, amount, rest = ''] =
      /^\s*(-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|\\\$\s*-?[\d,.]*)(?!\d)(.*)$/s.exec(content) ?? []
    if (amount !== undefined) {
      this.#inline(amount)
      if (rest.trim() !== '') this.#textGroup(rest)
      return
    }
    for (const [piece] of content.matchAll(
      /\s*(?:,\s*)?\b(?:and|or)\b|[,;]|(?:(?!\b(?:and|or)\b)[^,;])+/gi,
    )) {
      const text = piece.trim()
      const word = text.replace(/^,\s*/, '').toLowerCase()
      if (text === '') this.#spaced = true
      else if (text === ',' || text === ';') this.#connector(',')
      else if (word === 'and' || word === 'or') this.#connector(word)
      else if (word === 'to') this.#sign(':')
      else if (/^\(\s*mod$/.test(text))
        for (const token of new Tokenizer('(\\mod', this.#reading).run()) this.#tokens.push(token)
      else if (/^[\d\s.:+\-*/^=$()]+$/.test(text)) this.#inline(text)
      else if (/^[\d.:/]+\s+\D+$/.test(text)) {
        // \text{9:30 a.m.}
        const split = text.search(/\s/)
        this.#inline(text.slice(0, split))
        this.#text(text.slice(split + 1).trim())
      } else this.#text(text.replaceAll(/[$~]|\\[ ,]/g, ' '))
    }
    this.#spaced = true
  }

  #fontGroup(content: string, isBold: boolean): void {
    const word = content.trim()
    if (this.#isFunction(word)) this.#named(word)
    else if (this.#isUnitLetter(word)) this.#text(word)
    else if (/^[A-Za-z]$/.test(word)) {
      this.#push({ type: 'letter', text: word })
      const letter = this.#tokens.pop() as Token & { type: 'letter' }
      this.#tokens.push(isBold ? { ...letter, isBold } : letter)
    } else if (/[A-Za-z]{2}/.test(word) && !word.includes('\\')) this.#textGroup(content)
    else if (/^\([A-Z]\)$/.test(word)) this.#text(word)
    else this.#inline(content)
  }

  /** The h of km / \mathrm{h}. */
  #isUnitLetter(word: string): boolean {
    const [amount, previous] = this.#tokens.slice(-2)
    return amount?.type === 'text' && previous?.text === '/' && isUnitWord(word)
  }

  /** 45 \text{ sec} is a time, since nothing follows that it could be the secant of. */
  #isFunction(word: string): boolean {
    const hasArgument = /^\s*[(\\\w{^]/.test(this.#source.slice(this.#at))
    return plainCommands.has(word) && (hasArgument || !isUnitWord(word))
  }

  #inline(content: string): void {
    for (const token of new Tokenizer(content, this.#reading).run()) this.#tokens.push(token)
    this.#spaced = false
  }
}

function isAfterNumber(token: Token): boolean {
  return token.type === 'number' || (token.type === 'sign' && '})'.includes(token.text))
}
