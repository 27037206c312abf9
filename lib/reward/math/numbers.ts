/** Reads numbers: decimals, digits in other bases, words. */
import { Budget, Unreadable } from './budget.js'
import { powerRational, type Rational, rational } from './rational.js'
import { integer, type Node, type NodeOf, quotientOf } from './tree.js'

/** Largest number of digits of a number; longer numbers are refused. */
const MAX_DIGITS = 1000
/** Larger powers of ten in scientific notation stay powers. */
const MAX_SCALE = 1000n

const small = (
  'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen ' +
  'seventeen eighteen nineteen'
).split(' ')
const tens = 'twenty thirty forty fifty sixty seventy eighty ninety'.split(' ')
const numbers = new Map([
  ...small.map((word, value) => [word, value] as const),
  ...tens.map((word, i) => [word, 10 * (i + 2)] as const),
])
const parts = new Map(
  'half third quarter fifth sixth seventh eighth ninth tenth hundredth thousandth fourth'
    .split(' ')
    .map((word, i) => [word, BigInt([2, 3, 4, 5, 6, 7, 8, 9, 10, 100, 1000, 4][i]!)] as const),
)
const sizes = new Map<string, bigint>(
  (
    [
      [12n, 'dozen dutzend douzaine douzaines'],
      [144n, 'gross'],
      [100n, 'hundred 百'],
      [1000n, 'thousand tausend mille 千'],
      [10n ** 4n, '万 萬'],
      [10n ** 5n, 'lakh lakhs'],
      [10n ** 6n, 'million millions millionen mio 百万'],
      [10n ** 7n, 'crore crores'],
      [10n ** 8n, '亿 億'],
      [10n ** 9n, 'billion billions milliarden milliards'],
      [10n ** 12n, 'trillion trillions'],
    ] as const
  ).flatMap(([size, words]) => words.split(' ').map(word => [word, size] as const)),
)
const bases = new Map([
  ['binary', 2],
  ['octal', 8],
  ['decimal', 10],
  ['hexadecimal', 16],
  ['hex', 16],
])

/** seventeen, forty-two, one half, two thirds. */
export function numberInWords(words: string): Node | undefined {
  const word = words.toLowerCase().trim()
  const value = smallNumber(word)
  if (value !== undefined) return integer(value)
  if (word === 'half') return quotientOf(integer(1), integer(2))
  const [, count = '', part = ''] = /^(an?|[a-z]+)[- ]([a-z]+)$/.exec(word) ?? []
  const below = partOf(part)
  const above = /^an?$/.test(count) ? 1 : smallNumber(count)
  if (below === undefined || above === undefined) return undefined
  return quotientOf(integer(above), integer(below))
}

function smallNumber(word: string): number | undefined {
  const [, ten = '', one = ''] = /^([a-z]+ty)[- ]([a-z]+)$/.exec(word) ?? []
  const [round, digit] = [numbers.get(ten), numbers.get(one)]
  if (round !== undefined && digit !== undefined && digit > 0 && digit < 10) return round + digit
  return numbers.get(word)
}

function partOf(word: string): bigint | undefined {
  return parts.get(word === 'halves' ? 'half' : word.replace(/s$/, ''))
}

/**
 * Applies the first of the words behind a number that change its value (dozen, thirds, squared, per thousand, in binary).
 * Returns the number and the words that are left; undefined if no word changes the value.
 */
export function changedByWords(node: Node, words: string): { node: Node; rest: string } | undefined {
  const [, base = '', after = ''] =
    /^(?:in )?(binary|octal|decimal|hex(?:adecimal)?)\b(.*)$/is.exec(words) ?? []
  if (base !== '') {
    if (node.type !== 'number' || node.value.denominator !== 1n)
      throw new Unreadable('no digits of another base')
    return {
      node: { ...based(String(node.value.numerator), bases.get(base.toLowerCase())!), isInWords: true },
      rest: after,
    }
  }
  const [, mark = '', behind = ''] =
    /^(per (?:thousand|mill?e)|permille?|promille|pour mille|squared|cubed)(?![a-z])(.*)$/is.exec(words) ?? []
  if (/^squared|^cubed/i.test(mark)) {
    return { node: { type: 'power', left: node, right: integer(/^s/i.test(mark) ? 2 : 3) }, rest: behind }
  }
  if (mark !== '') return { node: perThousand(node), rest: behind }
  const [, first = '', rest = ''] = /^(\S+)\s*(.*)$/s.exec(words.trim()) ?? []
  const word = first.toLowerCase()
  const size = sizes.get(word)
  if (size !== undefined) return { node: { type: 'product', items: [node, integer(size)] }, rest }
  // "a second" and "three seconds" are times; "quarters" are coins as well as parts.
  const below = partOf(word)
  if (below !== undefined) return { node: quotientOf(node, integer(below)), rest: rest.replace(/^of\b/, '') }
  return undefined
}

export function perThousand(node: Node): Node {
  return quotientOf(node, integer(1000))
}

/** Digits, a point, more digits, a power of ten. */
export function decimal(text: string): Node {
  const [, whole = '', fraction = '', exponent = '0'] =
    /^(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d+))?$/.exec(text) ?? []
  if (text.length > MAX_DIGITS) throw new Unreadable(`a number of more than ${MAX_DIGITS} digits`)
  const value: Rational = rational(BigInt(whole + fraction || '0'), 10n ** BigInt(fraction.length))
  const node: Node = { type: 'number', value, digits: whole.length + fraction.length }
  const scale = BigInt(exponent)
  if (scale === 0n) return node
  if (scale > MAX_SCALE || scale < -MAX_SCALE) {
    const power: Node = { type: 'power', left: integer(10), right: integer(scale) }
    return { type: 'product', items: [node, power] }
  }
  const power = powerRational(rational(10n), scale, new Budget(10_000))
  return { type: 'product', items: [node, { type: 'number', value: power, digits: 2 }] }
}

/** The decimal `fixed` followed by endless repetitions of the digits: 0.1 and 23 are 0.1232323… */
export function repeatingDecimal(fixed: string, digits: string): Node {
  if (fixed.length + digits.length > MAX_DIGITS) throw new Unreadable('a number that is too long')
  const places = fixed.split('.')[1] ?? ''
  const head = fixed.replace('.', '')
  const scale = 10n ** BigInt(places.length) * (10n ** BigInt(digits.length) - 1n)
  const value = rational(BigInt(head + digits) - BigInt(head || '0'), scale)
  return { type: 'number', value, digits: (head + digits).length }
}

/** Digits, perhaps with a point, in another base than ten. */
export function based(text: string, base: number): NodeOf<'based'> {
  if (!/^[0-9A-Z]+(?:\.\d+)?$/.test(text)) throw new Unreadable('no number in another base')
  const digits = text.replace('.', '')
  if ([...digits].some(digit => Number.parseInt(digit, 36) >= base)) {
    throw new Unreadable(`a digit that base ${base} has not`)
  }
  if (digits.length > MAX_DIGITS) throw new Unreadable(`a number of more than ${MAX_DIGITS} digits`)
  return { type: 'based', digits, places: text.split('.')[1]?.length ?? 0, base }
}

/** 05:00 can only be a time. Two digits below 60 behind each colon can be a time or a ratio. */
export function kindOfRatio(written: string): NodeOf<'ratio'>['kind'] {
  if (/(?:^|:)0(?!\.)/.test(written)) return 'time'
  return /^\d\d?(?::[0-5]\d)+$/.test(written) ? 'time or ratio' : 'ratio'
}

export function ordinalEnding(n: bigint): string {
  if (n % 100n >= 11n && n % 100n <= 13n) return 'th'
  return ({ 1: 'st', 2: 'nd', 3: 'rd' } as Record<string, string>)[String(n % 10n)] ?? 'th'
}
