/**
 * Cases by rule: `tsx bench/math_rules.ts > test/data/math-rule-cases.jsonl`. Each rule says for any numbers which pairs are
 * equal and which are not. The expected verdict comes from the rule alone, never from a verifier.
 */
type Pair = readonly [answer: string, reference: string]

interface Rule {
  readonly category: string
  readonly same?: (n: Numbers) => readonly Pair[]
  readonly different?: (n: Numbers) => readonly Pair[]
}

interface Numbers {
  /** 2 ≤ a < b < c, no two of which are equal, and a prime p above all of them. */
  readonly a: number
  readonly b: number
  readonly c: number
  readonly p: number
}

const draws: readonly Numbers[] = [
  { a: 3, b: 5, c: 8, p: 13 },
  { a: 4, b: 7, c: 9, p: 17 },
]

const choose = (n: number, k: number) => {
  let value = 1
  for (let i = 0; i < k; i++) value = (value * (n - i)) / (i + 1)
  return value
}
const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => from + i)
const sum = (values: readonly number[]) => values.reduce((x, y) => x + y, 0)

const rules: readonly Rule[] = [
  {
    category: 'identity',
    different: ({ a, b, c }) => [
      ['0=0', `0.${a}${b} = ${a}${b}\\%`],
      [`0.${b}${a}=${b}${a}\\%`, `0.${a}${b} = ${a}${b}\\%`],
      ['x=x', `f(x+${a})=f(x)+${b}`],
      [`${a}=${b}`, `${b}=${c}`],
      [`f(${a}x)=${a}f(x)`, 'f(x+y)=f(x)+f(y)'],
      ['xy=yx', 'x+y=y+x'],
    ],
    same: ({ a, b }) => [
      [`0.${a}${b}`, `0.${a}${b} = ${a}${b}\\%`],
      [`f(x+${a})=${b}+f(x)`, `f(x+${a})=f(x)+${b}`],
    ],
  },
  {
    category: 'equation',
    same: ({ a, b, c }) => [
      [`${a}x+${b}y=${c}`, `${2 * a}x+${2 * b}y=${2 * c}`],
      [`y=${a}x+${b}`, `${a}x-y+${b}=0`],
      [`${a}x=${a * b}`, `x=${b}`],
      [`${b}`, `x=${b}`],
      [`x=${b}`, `${b}`],
      [`a+b=${c}`, `${c}`],
      [`|AB|=${c}`, `${c}`],
    ],
    different: ({ a, b, c }) => [
      [`${c}`, `${a}x+${b}y=${c}`],
      ['0', `x + ${a}z = 0`],
      [`${a}x+${b}y=${c}`, `${a}x+${b}z=${c}`],
      [`x=${a}`, `y=${a}`],
      [`x^2=${a * a}`, `${a}`],
      [`${a}x=${b}`, `${b}`],
      [`y=${a}x`, `x=${a}y`],
    ],
  },
  {
    category: 'function',
    different: ({ a, b }) => [
      [`${a}f`, `f(${a})`],
      [`h(${a}+x)`, `h(${a})+h(x)`],
      [`g(${a}x)`, `${a}g(x)`],
      [`\\phi(${a})`, `${a}\\phi`],
      [`f(g(${b}))`, `g(f(${b}))`],
      ['f \\circ g', 'g \\circ f'],
      [`f(${a})`, `f(${b})`],
      ['\\frac{dy}{dx}', '\\frac{y}{x}'],
      [`\\frac{d}{dx} x^${a}`, `x^${a - 1}`],
      ['p \\land q', 'p \\lor q'],
      [`\\int_0^{${a}} x^2\\,dx \\cdot x`, `\\int_0^{${a}} x^3\\,dx`],
      ['\\sum_{k=1}^{n} k x_k', 'k \\sum_{k=1}^{n} x_k'],
      ['A^{-1}B', 'BA^{-1}'],
      ['\\vec{a} \\times \\vec{b}', '\\vec{b} \\times \\vec{a}'],
      [`${a} \\bmod ${b + 1}`, `${b + 1} \\bmod ${a}`],
    ],
    same: ({ a, b }) => [
      [`f(${a}+${b})`, `f(${a + b})`],
      [`${a}+f(x)`, `f(x)+${a}`],
      ['\\sum_{i=1}^{n} x_i', '\\sum_{k=1}^{n} x_k'],
      ['q \\land p', 'p \\land q'],
      [`\\int_0^{${a}} t^2\\,dt`, `\\int_0^{${a}} x^2\\,dx`],
    ],
  },
  {
    category: 'unit',
    same: ({ a, b }) => [
      [`${a}\\text{ eggs}`, `${a}`],
      [`${a} \\text{ different ways}`, `${a}`],
      [`${a}\\text{ km}`, `${1000 * a}\\text{ m}`],
      [`${a}\\text{ dozen}`, `${12 * a}`],
      [`${a}‰`, `0.00${a}`],
      [`${a} \\text{ per thousand}`, `\\frac{${a}}{1000}`],
      [`\\frac{\\pi}{${b}}\\text{ radians}`, `\\frac{\\pi}{${b}}`],
      [`${a}\\text{ pct}`, `${a}\\%`],
      [`${a}${b}元`, `${a}${b}`],
      [`${a}${b}厘米`, `${a}${b}\\text{ cm}`],
      [`${a} Stück`, `${a}`],
      [`${a}\\text{ heures}`, `${a}\\text{ hours}`],
      [`${a}\\text{ thirds}`, `\\frac{${a}}{3}`],
    ],
    different: ({ a, b }) => [
      [`${a}0 \\text{ radians}`, `${a}0^\\circ`],
      [`${a}0 \\text{ rad}`, `${a}0 \\text{ degrees}`],
      [`${a}\\text{ dozen}`, `${a}`],
      [`${a}\\text{ thirds}`, `${a}`],
      [`${a} \\text{ squared}`, `${a}`],
      [`${a}‰`, `${a}`],
      [`${a}‰`, `${a}\\%`],
      ['101 \\text{ in binary}', '101'],
      [`${a}\\text{ km}`, `${a}\\text{ m}`],
      [`${a}\\text{ million}`, `${a}`],
      [`${a}${b}^\\circ\\text{C}`, `${a}${b}^\\circ\\text{F}`],
      [`${a}\\text{ m}^2`, `${a}\\text{ m}^3`],
    ],
  },
  {
    category: 'hedge',
    different: ({ a, b }) =>
      [
        'is wrong',
        'not',
        'maybe',
        'less',
        'at most',
        'or so',
        'perhaps',
        'approximately',
        'is incorrect',
        'I guess',
        'too many',
        'and more',
        'if lucky',
      ]
        .map((words): Pair => [`${b}${a}\\text{ ${words}}`, `${b}${a}`])
        .concat(
          ['less than', 'not', 'at least', 'more than', 'anything but', 'never'].map(
            (words): Pair => [`\\text{${words} } ${b}${a}`, `${b}${a}`],
          ),
        ),
  },
  {
    category: 'several',
    same: ({ a, b }) => [
      [`(1) ${a}; (2) ${b}`, `${a}, ${b}`],
      [`(a) ${b}, (b) ${a}`, `${b}, ${a}`],
      [`${a} \\text{ and } ${b}`, `${b}, ${a}`],
      [`x=${a} \\text{ or } x=-${b}`, `-${b}, ${a}`],
      [`x=${a}, y=-${b}`, `(${a}, -${b})`],
      [`y=-${b}, x=${a}`, `(${a}, -${b})`],
      [`\\begin{cases} x=${a} \\\\ y=-${b} \\end{cases}`, `(${a}, -${b})`],
      [`\\begin{cases} x=${a} \\\\ y=${b} \\end{cases}`, `x=${a}, y=${b}`],
    ],
    different: ({ a, b, c }) => [
      [`(1) ${a}; (2) ${b}`, `${a}, ${c}`],
      [`${a} \\text{ and } ${b}`, `${a}`],
      [`${a}, ${b}, ${c}`, `${a}, ${b}`],
      [`x=${a}, y=-${b}`, `(-${b}, ${a})`],
      [`y=-${b}, x=${a}`, `(-${b}, ${a})`],
      [`\\begin{cases} x=${a} \\\\ y=${b} \\end{cases}`, `(${b}, ${a})`],
      [`${a} \\text{ or } ${b}`, `${b}`],
    ],
  },
  {
    category: 'choice',
    same: ({ a, b }) => [
      [`B. ${a}`, 'B'],
      [`B) ${a}`, 'B'],
      [`B: ${a}`, 'B'],
      [`(B) ${a}`, `${a}`],
      [`\\text{B. } ${a}`, `${a}`],
      ['\\text{Option B}', 'B'],
      ['\\text{Choice (B)}', '\\text{(B)}'],
      ['B, D', 'BD'],
      ['B \\text{ and } D', 'D, B'],
      [`\\textbf{B.}\\ \\frac{${a}}{${b}}`, 'B'],
    ],
    different: ({ a, b }) => [
      [`B. ${a}`, 'C'],
      [`B. ${a}`, `${b}`],
      [`(B) ${a}`, `(B) ${b}`],
      ['\\text{Option B}', 'D'],
      ['B, D', 'B'],
      ['B, D', 'BC'],
      ['B \\text{ or } C', 'C'],
    ],
  },
  {
    category: 'chain',
    same: ({ a, b, c }) => [
      [`p+q = ${a}+${b} = ${a + b}`, `${a + b}`],
      [`x = ${a}+${b}+${c} = ${a + b + c}`, `${a + b + c}`],
      [`${a} \\cdot ${b} = ${a * b}`, `${a * b}`],
      ['\\frac13 \\approx 0.33', '\\frac13'],
      [`m = \\frac{${2 * a}}{${2 * b}} = \\frac{${a}}{${b}}`, `\\frac{${a}}{${b}}`],
      ['\\frac{2}{3} = 0.666\\ldots \\approx 0.667', '\\frac23'],
    ],
    different: ({ a, b, c }) => [
      [`p+q = ${a}+${b} = ${a + b + 1}`, `${a + b}`],
      [`p+q = ${a}+${b + 1} = ${a + b}`, `${a + b}`],
      [`${a} = ${b} = ${c}`, `${c}`],
      [`${a} \\cdot ${b} = ${a * b} = ${c}`, `${c}`],
      ['\\frac13 \\approx 0.5', '\\frac13'],
      ['0.33', '\\frac13'],
    ],
  },
  {
    category: 'family',
    same: ({ a, b }) => [
      [`\\frac{\\pi}{${a}} + k\\pi, k \\in \\mathbb{Z}`, `\\frac{\\pi}{${a}} + n\\pi, n \\in \\mathbb{Z}`],
      [
        `x = \\frac{\\pi}{${a}} + 2k\\pi, k \\in \\mathbb{Z}`,
        `\\frac{\\pi}{${a}} + 2m\\pi, m \\in \\mathbb{Z}`,
      ],
      [
        `k\\pi - \\frac{\\pi}{${a}}, k \\in \\mathbb{Z}`,
        `n\\pi + \\frac{${a - 1}\\pi}{${a}}, n \\in \\mathbb{Z}`,
      ],
      [`${b} + ${a}k, k \\in Z`, `${b - a} + ${a}t, t \\in \\mathbb{Z}`],
      ['x = k\\pi \\text{ where } k \\text{ is an integer}', 'n\\pi, n \\in \\mathbb{Z}'],
    ],
    different: ({ a, b }) => [
      [`\\frac{\\pi}{${a}} + k\\pi, k \\in \\mathbb{Z}`, `\\frac{\\pi}{${a}} + 2k\\pi, k \\in \\mathbb{Z}`],
      [`\\frac{\\pi}{${a}} + k\\pi, k \\in \\mathbb{Z}`, `\\frac{\\pi}{${b}} + k\\pi, k \\in \\mathbb{Z}`],
      [`\\frac{\\pi}{${a}} + k\\pi, k \\in \\mathbb{Z}`, `\\frac{\\pi}{${a}}`],
      [`${b} + ${a}k, k \\in \\mathbb{Z}`, `${b} + ${a}k, k \\in \\mathbb{N}`],
    ],
  },
  {
    category: 'inequality',
    same: ({ a, b, c }) => [
      [`${a}x > ${a * b}`, `x > ${b}`],
      [`-x > -${b}`, `x < ${b}`],
      [`x^2 > ${a * a}`, `x < -${a} \\text{ or } x > ${a}`],
      [`x^2 \\le ${a * a}`, `[-${a}, ${a}]`],
      [`|x-${b}| < ${a}`, `(${b - a}, ${a + b})`],
      [`0 < f(x) < ${a}`, `(0, ${a})`],
      [`x \\neq ${a}`, `x != ${a}`],
      [`x != ${a}`, `(-\\infty, ${a}) \\cup (${a}, \\infty)`],
      [`${a} < 2x - ${b} < ${c}`, `(${(a + b) / 2}, ${(b + c) / 2})`],
      [`(0.5, ${a}.25)`, `(\\frac12, \\frac{${4 * a + 1}}{4})`],
      [`(x-${a})(x-${b}) < 0`, `(${a}, ${b})`],
      [`\\frac{x-${a}}{x-${b}} \\ge 0`, `(-\\infty, ${a}] \\cup (${b}, \\infty)`],
      [`${a} \\le |z| \\le ${b}`, `[${a}, ${b}]`],
    ],
    different: ({ a, b }) => [
      [`${a}x > ${a * b + 1}`, `x > ${b}`],
      [`-x > -${b}`, `x > ${b}`],
      [`x^2 > ${a * a}`, `x > ${a}`],
      [`x^2 < ${a * a}`, `x < ${a}`],
      [`|x-${b}| \\le ${a}`, `(${b - a}, ${a + b})`],
      [`x \\ne ${a}`, `x = ${a}`],
      [`x \\ge ${a}`, `x > ${a}`],
      [`(x-${a})(x-${b}) > 0`, `(${a}, ${b})`],
      [`x > ${a}`, `y > ${a}`],
    ],
  },
  {
    category: 'closed form',
    same: ({ a, b, c, p }) => [
      [`\\lfloor ${p}/${a} \\rfloor`, `${Math.floor(p / a)}`],
      [`\\lceil \\sqrt{${p}} \\rceil`, `${Math.ceil(Math.sqrt(p))}`],
      [`\\gcd(${6 * a}, ${6 * b})`, '6'.replace('6', String(6 * gcd(a, b)))],
      [`\\text{lcm}(${a}, ${p})`, `${a * p}`],
      [`\\mathrm{lcm}(${2 * a}, ${2 * p})`, `${2 * a * p}`],
      [`C_{${c}}^{${a}}`, `${choose(c, a)}`],
      [`\\binom{${c}}{${a}}`, `\\binom{${c}}{${c - a}}`],
      [`${b}!`, `${range(1, b).reduce((x, y) => x * y, 1)}`],
      [`\\sum_{k=1}^{${c}} k^2`, `${sum(range(1, c).map(k => k * k))}`],
      [`\\prod_{k=${a}}^{${b}} k`, `${range(a, b).reduce((x, y) => x * y, 1)}`],
      [`\\begin{vmatrix} ${a} & ${b} \\\\ ${c} & ${p} \\end{vmatrix}`, `${a * p - b * c}`],
      [
        `\\det\\begin{pmatrix} ${a} & 1 & 0 \\\\ 0 & ${b} & 1 \\\\ 1 & 0 & ${c} \\end{pmatrix}`,
        `${a * b * c + 1}`,
      ],
      [
        `\\begin{pmatrix} ${a} & 0 \\\\ 1 & ${b} \\end{pmatrix} + \\begin{pmatrix} 1 & 1 \\\\ 1 & 1 \\end{pmatrix}`,
        `\\begin{pmatrix} ${a + 1} & 1 \\\\ 2 & ${b + 1} \\end{pmatrix}`,
      ],
      [
        `\\begin{pmatrix} 0 & 1 \\\\ 1 & 0 \\end{pmatrix}\\begin{pmatrix} ${a} & ${b} \\\\ ${c} & ${p} \\end{pmatrix}`,
        `\\begin{pmatrix} ${c} & ${p} \\\\ ${a} & ${b} \\end{pmatrix}`,
      ],
      [`\\|(${3 * a}, ${4 * a})\\|`, `${5 * a}`],
      [`\\max(${a}, ${b}, ${c})`, `${c}`],
      [`${p} \\bmod ${a}`, `${p % a}`],
    ],
    different: ({ a, b, c, p }) => [
      [`\\lceil ${p}/${a} \\rceil`, `${Math.floor(p / a)}`],
      [`\\gcd(${6 * a}, ${6 * b})`, `${6 * gcd(a, b) + 1}`],
      [`C_{${c}}^{${a}}`, `${choose(c, a) + 1}`],
      [`\\sum_{k=1}^{${c}} k^2`, `${sum(range(1, c - 1).map(k => k * k))}`],
      [`\\begin{vmatrix} ${a} & ${b} \\\\ ${c} & ${p} \\end{vmatrix}`, `${b * c - a * p}`],
      [
        `\\begin{pmatrix} ${a} & ${b} \\\\ ${c} & ${p} \\end{pmatrix}\\begin{pmatrix} 0 & 1 \\\\ 1 & 0 \\end{pmatrix}`,
        `\\begin{pmatrix} ${c} & ${p} \\\\ ${a} & ${b} \\end{pmatrix}`,
      ],
      [`\\|(${3 * a}, ${4 * a})\\|`, `${7 * a}`],
      [`${p} \\bmod ${a}`, `${a % p}`],
    ],
  },
  {
    category: 'decimal comma',
    same: ({ a, b, c }) => [
      [`${a},${b}${c}`, `${a}.${b}${c}`],
      [`${a}{,}${b}${c}`, `${a}.${b}${c}`],
      [`${a},${b}\\text{ m}`, `${a}.${b}\\text{ m}`],
      [`[${a},5; ${b},5]`, `[${a}.5, ${b}.5]`],
    ],
    different: ({ a, b, c }) => [
      [`${a}.${b}${c}`, `${a}, ${b}${c}`],
      [`${a},${b}${c}`, `${a}.${b}${c + 1}`],
      [`${a},${b}`, `${a}${b}`],
    ],
  },
  {
    category: 'congruence',
    same: ({ a, b, p }) => [
      [`${a} \\pmod{${p}}`, `${a}`],
      [`x \\equiv ${a} \\pmod{${p}}`, `x \\equiv ${a + p} \\pmod{${p}}`],
      [`x \\equiv ${b} \\pmod ${b + 1}`, `x \\equiv -1 \\pmod ${b + 1}`],
    ],
    different: ({ a, b, p }) => [
      [`x \\equiv ${a} \\pmod{${p}}`, `x \\equiv ${b} \\pmod{${p}}`],
      [`x \\equiv ${a} \\pmod{${p}}`, `x \\equiv ${a} \\pmod{${p + 1}}`],
    ],
  },
  {
    category: 'value',
    same: ({ a, b, c }) => [
      [`\\frac{${a * c}}{${b * c}}`, `\\frac{${a}}{${b}}`],
      [`${a}\\frac{1}{${b}}`, `\\frac{${a * b + 1}}{${b}}`],
      [`\\sqrt{${a * a * b}}`, `${a}\\sqrt{${b}}`],
      [`\\frac{1}{\\sqrt{${b}}}`, `\\frac{\\sqrt{${b}}}{${b}}`],
      [`\\log_{${a}} ${a ** 4}`, '4'],
      [`2^{${a}} \\cdot 2^{${b}}`, `2^{${a + b}}`],
      [`(x+${a})(x-${a})`, `x^2-${a * a}`],
      [`${a}.${b}e${c}`, `${a}.${b} \\times 10^{${c}}`],
      [`\\frac{${a}}{${b}}\\%`, `\\frac{${a}}{${100 * b}}`],
      [`\\cos^2 ${a} + \\sin^2 ${a}`, '1'],
    ],
    different: ({ a, b, c }) => [
      [`\\frac{${b}}{${a}}`, `\\frac{${a}}{${b}}`],
      [`${a}\\frac{1}{${b}}`, `\\frac{${a}}{${b}}`],
      [`\\sqrt{${a * b}}`, `${a}\\sqrt{${b}}`],
      [`\\sqrt{${a}} + \\sqrt{${b}}`, `\\sqrt{${a + b}}`],
      [`${a}^{${b}}`, `${b}^{${a}}`],
      [`(x+${a})^2`, `x^2+${a * a}`],
      [`-${a}`, `${a}`],
      [`${a}x^${b}`, `${a}x^${c}`],
      [`${a}X`, `${a}x`],
      ['3.14', '\\pi'],
    ],
  },
]

function gcd(a: number, b: number): number {
  return b === 0 ? a : gcd(b, a % b)
}

const seen = new Set<string>()
for (const { category, same, different } of rules) {
  for (const numbers of draws) {
    for (const [pairs, equal] of [
      [same?.(numbers) ?? [], true],
      [different?.(numbers) ?? [], false],
    ] as const) {
      for (const [answer, reference] of pairs) {
        const line = JSON.stringify({ category, reference, answer, equal })
        if (!seen.has(line)) console.log(line)
        seen.add(line)
      }
    }
  }
}
