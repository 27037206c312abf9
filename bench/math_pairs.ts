/**
 * Random pairs of answers that are equal or not by construction. A value is drawn and written down twice, each time in a
 * notation drawn for it. In an unequal pair the second value is another one of the same kind, usually a near one.
 */

export interface Pair {
  readonly kind: string
  readonly answer: string
  readonly reference: string
  readonly equal: boolean
}

export interface Random {
  /** A whole number in [low, high]. */
  whole(low: number, high: number): number
  pick<T>(items: readonly T[]): T
}

/** mulberry32 */
export function randomOf(seed: number): Random {
  let state = seed >>> 0
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
  const whole = (low: number, high: number) => low + Math.floor(next() * (high - low + 1))
  return { whole, pick: items => items[whole(0, items.length - 1)]! }
}

/** A kind of value. The numbers of `draw` define a value; `key` is the same exactly for equal values. */
interface Kind {
  readonly name: string
  draw(random: Random): number[]
  key(value: readonly number[]): string
  readonly notations: readonly ((value: readonly number[], random: Random) => string | undefined)[]
}

const gcd = (a: number, b: number): number => (b === 0 ? Math.abs(a) : gcd(b, a % b))
const reduced = (p: number, q: number) => {
  const d = gcd(p, q) * Math.sign(q)
  return [p / d, q / d] as const
}
const fraction = (p: number, q: number) =>
  q === 1 ? `${p}` : p < 0 ? `-\\frac{${-p}}{${q}}` : `\\frac{${p}}{${q}}`
const isFinite10 = (q: number) => {
  let rest = q
  for (const p of [2, 5]) while (rest % p === 0) rest /= p
  return rest === 1
}
const decimal = (p: number, q: number) => (isFinite10(q) ? String(p / q) : undefined)
const signed = (n: number, text = '') => (n < 0 ? `-${-n}${text}` : `+${n}${text}`)

/** Numbers p / q, p in value[0], q in value[1]. */
const ofRational: Kind['notations'] = [
  ([p, q]) => fraction(...reduced(p!, q!)),
  ([p, q]) => `${reduced(p!, q!).join('/')}`,
  ([p, q], r) => {
    const k = r.whole(2, 6)
    return `\\frac{${p! * k}}{${q! * k}}`
  },
  ([p, q]) => `\\dfrac{${p}}{${q}}`,
  ([p, q]) => decimal(p!, q!),
  ([p, q]) =>
    decimal(p! * 100, q!)
      ?.concat('\\%')
      .replace(/^(.*e.*)$/, ''),
  ([p, q], r) => `x = ${fraction(...reduced(p!, q!))}${r.pick(['', '.', ' '])}`,
  ([p, q], r) => {
    const k = r.whole(1, 9)
    return `${fraction(...reduced(p! - k * q!, q!))} + ${k}`
  },
  ([p, q]) => {
    const [a, b] = reduced(p!, q!)
    return a > b && b > 1 ? `${Math.floor(a / b)}\\frac{${a % b}}{${b}}` : undefined
  },
  ([p, q]) => `\\frac{${p! * p!}}{${p! * q!}}`.replace(/^\\frac\{0.*$/, '0'),
  ([p, q], r) => `${fraction(...reduced(p! * 2, q!))} \\cdot \\frac{1}{2}${r.pick(['', ' \\\\'])}`,
  ([p, q]) => (p! >= 0 ? `\\sqrt{\\frac{${p! * p!}}{${q! * q!}}}` : undefined),
  ([p, q]) => `\\sqrt[3]{\\frac{${p! ** 3}}{${q! ** 3}}}`,
  ([p, q]) => `\\log_2 2^{${fraction(...reduced(p!, q!))}}`,
  ([p, q]) => `\\begin{vmatrix} ${p} & ${q} \\\\ 0 & 1 \\end{vmatrix} \\cdot \\frac{1}{${q}}`,
  ([p, q]) => `\\frac{\\sum_{k=1}^{3} ${p}k}{${6 * q!}}`,
]

const near = (value: number[], random: Random) => {
  const at = random.whole(0, value.length - 1)
  return value.with(at, value[at]! + random.pick([1, -1, 2, 10]))
}

const kinds: readonly Kind[] = [
  {
    name: 'rational',
    draw: r => [r.whole(-40, 40), r.whole(1, 12)],
    key: ([p, q]) => String(q! > 0 ? reduced(p!, q!) : [p, q]),
    notations: ofRational,
  },
  {
    name: 'integer',
    draw: r => [r.whole(0, 99)],
    key: ([n]) => String(n),
    notations: [
      ([n]) => `${n}`,
      ([n]) => `${n}.0`,
      ([n]) => `\\boxed{${n}}`,
      ([n]) => `n=${n}`,
      ([n]) => `${n}\\text{ students}`,
      ([n]) => `\\lfloor ${n}.7 \\rfloor`,
      ([n]) => `\\lceil ${n} - 0.3 \\rceil`,
      ([n]) => `\\gcd(${n}, ${n! * 5})`,
      ([n], r) => {
        const modulus = n! + r.whole(1, 30)
        return `${n! + modulus * 3} \\bmod ${modulus}`
      },
      ([n]) => `\\max(${n}, ${n! - 5})`,
      ([n]) => `\\binom{${n}}{1}`,
      ([n]) => `\\frac{${n! + 1}!}{${n}!} - 1`.replace(/^.*\d{3}!.*$/, '') || undefined,
      ([n]) => `\\|(${3 * n!}, ${4 * n!})\\| / 5`,
      ([n]) => `\\sum_{k=1}^{${n}} 1`,
      ([n]) => `\\det\\begin{pmatrix} ${n} & 7 \\\\ 0 & 1 \\end{pmatrix}`,
      ([n]) => `\\text{The answer is } ${n}`,
      ([n]) => `e^{\\ln ${n! + 1}} - 1`,
      ([n]) => `${n}人`,
    ],
  },
  {
    name: 'surd',
    draw: r => [r.whole(1, 9), r.pick([2, 3, 5, 6, 7]), r.whole(1, 9)],
    key: ([a, n, c]) => `${n! > 0 && c! > 0 ? reduced(a! * a! * n!, c! * c!) : [a, n, c]} ${Math.sign(a!)}`,
    notations: [
      ([a, n, c]) => `\\frac{${a}\\sqrt{${n}}}{${c}}`,
      ([a, n, c]) => (a! > 0 ? `\\sqrt{\\frac{${a! * a! * n!}}{${c! * c!}}}` : undefined),
      ([a, n, c]) => `\\frac{${a! * n!}}{${c}\\sqrt{${n}}}`,
      ([a, n, c]) => `${fraction(...reduced(a!, c!))} ${n}^{1/2}`.replace(/^(-?\d+) /, '$1 \\cdot '),
      ([a, n, c]) => `${a}√${n}/${c}`,
      ([a, n, c]) => `x = \\frac{${a}}{${c}}\\sqrt{${n}}`,
      ([a, n, c]) => `\\frac{${a}\\sqrt{${4 * n!}}}{${2 * c!}}\\text{ cm}`,
    ],
  },
  {
    name: 'multiple of π',
    draw: r => [r.whole(1, 20), r.whole(1, 12)],
    key: ([p, q]) => String(q! > 0 ? reduced(p!, q!) : [p, q]),
    notations: [
      ([p, q]) => `\\frac{${p}\\pi}{${q}}`,
      ([p, q]) => `\\frac{${p}}{${q}}\\pi`,
      ([p, q]) => `${p}π/${q}`,
      ([p, q]) => `${decimal(p! * 180, q!) ?? ''}^\\circ`.replace(/^\^.*$/, '') || undefined,
      ([p, q]) => `\\frac{${2 * p!}\\pi}{${2 * q!}} \\text{ radians}`,
      ([p, q]) => `\\theta = \\pi \\cdot \\frac{${p}}{${q}}`,
    ],
  },
  {
    name: 'complex',
    draw: r => [r.whole(-9, 9), r.whole(1, 9)],
    key: ([a, b]) => `${a} ${b}`,
    notations: [
      ([a, b]) => `${a}${signed(b!, 'i')}`,
      ([a, b]) => `${b}i${signed(a!)}`,
      ([a, b]) => `z = ${a} + ${b} \\cdot i`.replace('+ -', '- '),
      ([a, b]) => `\\frac{${2 * a!}${signed(2 * b!, 'i')}}{2}`,
      ([a, b]) => `i(${b}${signed(-a!, 'i')})`,
    ],
  },
  {
    name: 'tuple',
    draw: r => [r.whole(-9, 9), r.whole(-9, 9), r.whole(-9, 9)],
    key: value => String(value),
    notations: [
      value => `(${value.join(', ')})`,
      value => `\\left(${value.join(',')}\\right)`,
      value => `\\begin{pmatrix} ${value.join(' \\\\ ')} \\end{pmatrix}`,
      value => `\\langle ${value.join(', ')} \\rangle`,
      ([a, b, c]) => `x=${a}, y=${b}, z=${c}`,
      ([a, b, c]) => `\\begin{cases} x=${a} \\\\ y=${b} \\\\ z=${c} \\end{cases}`,
      ([a, b, c]) => `(x, y, z) = (${a}, ${b}, ${c})`,
      ([a, b, c]) => `(${a! - 1}, ${b}, ${c! - 2}) + (1, 0, 2)`,
      ([a, b, c]) => `\\frac{1}{2}(${2 * a!}, ${2 * b!}, ${2 * c!})`,
    ],
  },
  {
    name: 'set',
    draw: r => [r.whole(-9, 9), r.whole(10, 19), r.whole(20, 29)],
    key: value => String([...new Set(value)].toSorted((a, b) => a - b)),
    notations: [
      value => `\\{${value.join(', ')}\\}`,
      value => `\\{${value.toReversed().join(', ')}\\}`,
      value => `${value.join(', ')}`,
      ([a, b, c]) => `x=${b} \\text{ or } x=${a} \\text{ or } x=${c}`,
      ([a, b, c]) => `${a}, ${c} \\text{ and } ${b}`,
      ([a, b, c]) => `x \\in \\{${c}, ${a}, ${b}\\}`,
      ([a, b, c]) => `(1) ${a}; (2) ${b}; (3) ${c}`,
    ],
  },
  {
    name: 'interval',
    draw: r => {
      const low = r.whole(-9, 9)
      return [low, low + r.whole(1, 9), r.whole(0, 1), r.whole(0, 1)]
    },
    key: ([a, b, left, right]) => `${a} ${b} ${left !== 0} ${right !== 0}`,
    notations: [
      ([a, b, left, right]) => `${left ? '[' : '('}${a}, ${b}${right ? ']' : ')'}`,
      ([a, b, left, right]) => `${a} ${left ? '\\le' : '<'} x ${right ? '\\le' : '<'} ${b}`,
      ([a, b, left, right]) => `x ${left ? '\\ge' : '>'} ${a} \\text{ and } x ${right ? '\\leq' : '<'} ${b}`,
      ([a, b, left, right]) =>
        `\\left${left ? '[' : '('}${a}.0, \\frac{${2 * b!}}{2}\\right${right ? ']' : ')'}`,
      ([a, b, left, right]) => `${2 * a!} ${left ? '\\le' : '<'} 2x ${right ? '\\le' : '<'} ${2 * b!}`,
      ([a, b, left, right]) => `${-b!} ${right ? '\\le' : '<'} -x ${left ? '\\le' : '<'} ${-a!}`,
      ([a, b, left, right]) =>
        !left === !right ? `(x${signed(-a!)})(x${signed(-b!)}) ${left ? '\\le' : '<'} 0` : undefined,
      ([a, b, left, right]) => `x \\in ${left ? '[' : '('}${a}, ${b}${right ? ']' : ')'}`,
      ([a, b, left, right]) =>
        !left === !right ? `|2x${signed(-a! - b!)}| ${left ? '\\le' : '<'} ${b! - a!}` : undefined,
    ],
  },
  {
    name: 'ray',
    draw: r => [r.whole(-9, 9), r.whole(0, 1)],
    key: ([a, isClosed]) => `${a} ${isClosed !== 0}`,
    notations: [
      ([a, isClosed]) => `x ${isClosed ? '\\ge' : '>'} ${a}`,
      ([a, isClosed]) => `${isClosed ? '[' : '('}${a}, \\infty)`,
      ([a, isClosed]) => `${a} ${isClosed ? '\\le' : '<'} x`,
      ([a, isClosed]) => `-3x ${isClosed ? '<=' : '<'} ${-3 * a!}`,
      ([a, isClosed]) => `5x - 1 ${isClosed ? '\\geq' : '>'} ${5 * a! - 1}`,
      ([a, isClosed]) => `\\mathbb{R} \\setminus (-\\infty, ${a}${isClosed ? ')' : ']'}`,
    ],
  },
  {
    name: 'polynomial',
    draw: r => [r.whole(1, 6), r.whole(-9, 9), r.whole(-9, 9)],
    key: value => String(value),
    notations: [
      ([a, b, c]) => `${a}x^2${signed(b!, 'x')}${signed(c!)}`,
      ([a, b, c]) => `${c}${signed(b!, 'x')}${signed(a!, 'x^2')}`,
      ([a, b, c]) => `x(${a}x${signed(b!)})${signed(c!)}`,
      ([a, b, c]) => `${a}(x+1)^2${signed(b! - 2 * a!, '(x+1)')}${signed(c! - b! + a!)}`,
      ([a, b, c]) => `f(x) = ${a}x^2${signed(b!, 'x')}${signed(c!)}`,
      ([a, b, c]) => `\\frac{${2 * a!}x^2${signed(2 * b!, 'x')}${signed(2 * c!)}}{2}`,
    ],
  },
  {
    name: 'line',
    draw: r => [r.whole(1, 9), r.whole(1, 9), r.whole(-9, 9)],
    key: ([a, b, c]) => {
      const d = gcd(gcd(a!, b!), c!)
      return String([a! / d, b! / d, c! / d].map(n => n * Math.sign(a! || 1)))
    },
    notations: [
      ([a, b, c]) => `${a}x${signed(b!, 'y')} = ${c}`,
      ([a, b, c]) => `${2 * a!}x${signed(2 * b!, 'y')}${signed(-2 * c!)} = 0`,
      ([a, b, c]) => `${c} = ${a}x${signed(b!, 'y')}`,
      ([a, b, c]) => (b! > 0 ? `y = \\frac{${c}${signed(-a!, 'x')}}{${b}}` : undefined),
    ],
  },
  {
    name: 'matrix',
    draw: r => [r.whole(-5, 5), r.whole(-5, 5), r.whole(-5, 5), r.whole(-5, 5)],
    key: value => String(value),
    notations: [
      ([a, b, c, d]) => `\\begin{pmatrix} ${a} & ${b} \\\\ ${c} & ${d} \\end{pmatrix}`,
      ([a, b, c, d]) => `\\begin{bmatrix} ${a} & ${b} \\\\ ${c} & ${d} \\end{bmatrix}`,
      ([a, b, c, d]) => `2\\begin{pmatrix} ${a! / 2} & ${b! / 2} \\\\ ${c! / 2} & ${d! / 2} \\end{pmatrix}`,
      ([a, b, c, d]) =>
        `\\begin{pmatrix} 0 & 1 \\\\ 1 & 0 \\end{pmatrix}\\begin{pmatrix} ${c} & ${d} \\\\ ${a} & ${b} \\end{pmatrix}`,
      ([a, b, c, d]) =>
        `\\begin{pmatrix} ${a! - 1} & ${b} \\\\ ${c} & ${d! - 1} \\end{pmatrix} + \\begin{pmatrix} 1 & 0 \\\\ 0 & 1 \\end{pmatrix}`,
      ([a, b, c, d]) => `\\begin{pmatrix} ${a} & ${c} \\\\ ${b} & ${d} \\end{pmatrix}^T`,
    ],
  },
  {
    name: 'family',
    draw: r => [r.whole(1, 11), r.pick([1, 2])],
    key: ([a, b]) => `${((a! % (12 * b!)) + 12 * b!) % (12 * b!)} ${b}`,
    notations: [
      ([a, b], r) => {
        const k = r.pick(['k', 'n', 'm'])
        return `\\frac{${a}\\pi}{12} + ${b}${k}\\pi, ${k} \\in \\mathbb{Z}`
      },
      ([a, b]) => `x = ${b}\\pi k + \\frac{${a! + 12 * b!}\\pi}{12}\\ (k \\in \\mathbb{Z})`,
      ([a, b]) => `${b}t\\pi - \\frac{${12 * b! - a!}\\pi}{12}, t \\in Z`,
      ([a, b]) => `\\{x \\mid x = \\frac{${a}\\pi}{12} + ${b}k\\pi, k \\in \\mathbb{Z}\\}`,
      ([a, b]) => `\\frac{${a}\\pi}{12} + ${b}n\\pi \\text{ for any integer } n`,
    ],
  },
  {
    name: 'congruence',
    draw: r => {
      const modulus = r.whole(3, 20)
      return [r.whole(0, modulus - 1), modulus]
    },
    key: ([a, m]) => `${((a! % m!) + m!) % m!} ${m}`,
    notations: [
      ([a, m]) => `x \\equiv ${a} \\pmod{${m}}`,
      ([a, m]) => `x \\equiv ${a! + m!} \\pmod{${m}}`,
      ([a, m]) => `x \\equiv ${a! - m!} \\ (\\bmod\\ ${m})`,
    ],
  },
  {
    name: 'length',
    draw: r => [r.whole(1, 99)],
    key: ([n]) => String(n),
    notations: [
      ([n]) => `${n}\\text{ m}`,
      ([n]) => `${100 * n!}\\text{ cm}`,
      ([n]) => `${n! / 1000} \\text{ km}`,
      ([n]) => `${n} \\text{ meters}`,
      ([n]) => `${n}米`,
      ([n]) => `${1000 * n!} \\mathrm{mm}`,
    ],
  },
  {
    name: 'choices',
    draw: r => [r.whole(0, 6), r.whole(0, 6)],
    key: ([a, b]) => [...new Set([a, b].map(n => 'ABCDEFGHIJ'[((n! % 10) + 10) % 10]))].sort().join(''),
    notations: [
      ([a, b]) => choices(a!, b!).join(', '),
      ([a, b]) => choices(b!, a!).join(' \\text{ and } '),
      ([a, b]) => choices(b!, a!).join(','),
    ],
  },
  {
    name: 'function',
    draw: r => [r.whole(1, 9), r.whole(1, 9), r.whole(0, 2)],
    key: value => String(value),
    notations: [
      ([a, b, f]) => `${a}${'fgh'[Math.abs(f!) % 3]}(${b}) + ${Math.floor(Math.abs(f!) / 3)}`,
      ([a, b, f]) =>
        `${Math.floor(Math.abs(f!) / 3)} + ${a} \\cdot ${'fgh'[Math.abs(f!) % 3]}(${b! - 1} + 1)`,
      ([a, b, f]) => `${'fgh'[Math.abs(f!) % 3]}(${b}) \\cdot ${a} + ${Math.floor(Math.abs(f!) / 3)}`,
    ],
  },
]

function choices(...places: number[]): string[] {
  return [...new Set(places.map(n => 'ABCDEFGHIJ'[((n % 10) + 10) % 10]!))]
}

/** The pair of a seed; undefined if the value has no second notation. */
export function pairOf(seed: number): Pair {
  const random = randomOf(seed)
  for (;;) {
    const kind = random.pick(kinds)
    const value = kind.draw(random)
    const equal = random.whole(0, 1) === 1
    const other = equal ? value : random.whole(0, 3) > 0 ? near(value, random) : kind.draw(random)
    if (!equal && kind.key(other) === kind.key(value)) continue
    const [answer, reference] = [value, other].map(one => random.pick(kind.notations)(one, random))
    if (answer && reference && !/NaN|e-/.test(answer + reference))
      return { kind: kind.name, answer, reference, equal }
  }
}
