import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { pairOf } from '../../bench/math_pairs.js'
import { Budget } from '../../lib/reward/math/budget.js'
import {
  compareAnswers,
  extractAnswer,
  extractBoxed,
  extractions,
  math,
  verifyMath,
} from '../../lib/reward/math.js'

interface Case {
  readonly category: string
  readonly reference: string
  readonly answer: string
  readonly equal: boolean
  readonly heldOut: boolean
}

const cases: Case[] = readFileSync(new URL('../data/math-cases.jsonl', import.meta.url), 'utf8')
  .trim()
  .split('\n')
  .map(line => JSON.parse(line))

/** In the style of what models write. */
const modelCases: (Omit<Case, 'answer'> & { readonly answer?: string; readonly completion?: string })[] =
  readFileSync(new URL('../data/math-model-cases.jsonl', import.meta.url), 'utf8')
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))

const ruleCases: Case[] = readFileSync(new URL('../data/math-rule-cases.jsonl', import.meta.url), 'utf8')
  .trim()
  .split('\n')
  .map(line => JSON.parse(line))

const completionOf = ({ answer, completion }: { answer?: string; completion?: string }) =>
  completion ?? `The final answer is $\\boxed{${answer}}$.`

const isEqual = (a: string, b: string) => compareAnswers(a, b).isEqual

function assertEqualBothWays(a: string, b: string): void {
  assert.ok(isEqual(a, b) && isEqual(b, a), `${a} and ${b}`)
}

function assertUnequalBothWays(a: string, b: string): void {
  assert.not(isEqual(a, b) || isEqual(b, a), `${a} and ${b}`)
}

function wrong(chosen: readonly Case[]) {
  return chosen
    .filter(({ answer, reference, equal }) => isEqual(answer, reference) !== equal)
    .map(({ answer, reference, equal }) => `${equal ? 'rejected' : 'accepted'} ${answer} for ${reference}`)
}

test('the collected cases: every one that is not held out', () => {
  assert.equal(wrong(cases.filter(({ heldOut }) => !heldOut)), [])
})

test('the held-out cases: at least .97 right, fewer than 1 % wrongly accepted', () => {
  const heldOut = cases.filter(({ heldOut }) => heldOut)
  const faults = wrong(heldOut)
  assert.ok(heldOut.length >= 150)
  assert.ok(faults.length <= 0.03 * heldOut.length, faults.join('\n'))
  assert.ok(
    faults.filter(fault => fault.startsWith('accepted')).length < 0.01 * heldOut.length,
    faults.join('\n'),
  )
})

test('the cases in the style of models: all but those that are known to be rejected', () => {
  const wrong = modelCases.filter(
    one => (verifyMath(completionOf(one), one.reference).reward === 1) !== one.equal,
  )
  assert.equal(
    wrong.map(({ answer, reference }) => [answer, reference]),
    [
      // ABC might be a product.
      ['ABC_{16}', '2748_{10}'],
      // Or ⅕.
      ['\\text{fifth}', '5\\text{th}'],
    ],
  )
})

test('what looks like a case that was mended, and is none', () => {
  const pairs = [
    ['x+y=7', 'x-y=7'],
    ['x^2=9', '9'],
    ['2x=6', '6'],
    ['|x|=3', '3'],
    ['p+q=19', '18'],
    ['a^2+b^2=25', 'a^2+b^2=16'],
    ['\\frac{dy}{dx}=2x', 'x^2'],
    ['f^{-1}(x)=2x', 'f(x)=2x'],
    ['10\\text{ cm } 3\\text{ m}', '13'],
    ['3\\text{ m and }40\\text{ cm}', '343\\text{ cm}'],
    ["30^\\circ 15'", '30^\\circ'],
    ['\\$18\\text{ and }\\$20', '18'],
    ['5^{st}', '5'],
    ['x^o', 'x'],
    ['|x|\\ge2', '(-\\infty,-2)\\cup(2,\\infty)'],
    ['x=3\\text{ or }y=4', '(3,4)'],
    ['x\\in(3,5)', '3,5'],
    ['\\left]1,2\\right]', '[1,2]'],
    ['1101\\text{ base }3', '1101_2'],
    ['52_8', '42'],
    ['52_8', '6\\cdot7'],
    ['-52_8', '-42'],
    ['-52_8', '52'],
    ['3\\text{ to }2', '2:3'],
    ['x\\ne\\pm1', 'x\\ne1'],
    ['\\color{red}7', '8'],
    ['= 8', '7'],
    // Read twice: first as a mixed number, which it is not.
    ['2\\frac{x}12', 'x'],
    // Times are no ratios.
    ['06:00', '05\\!:\\!00'],
    ['11:00', '05\\!:\\!00'],
    ['\\text{6:00}', '05\\!:\\!00'],
    ['3:08', '9:24'],
    ['12:00', '1:00'],
    ['2:30', '1:15'],
    ['3/8', '3:08'],
    ['00:30', '0'],
    ['0:5', '0:3'],
    ['9:30 a.m.', '9:30 \\text{ p.m.}'],
    // Variables, and units of other things
    ['3x', '3'],
    ['3 x', '3'],
    ['60m', '60'],
    ['3 s t', '3'],
    ['3 m_1', '3'],
    ['3 + 2 m', '5'],
    ['7 - 2 m', '5'],
    ['60 m', '60 n'],
    ['60 m/s', '60 \\text{ km/h}'],
    ['60 men', '60 \\text{ women}'],
    ['12 kg', '12 \\text{ gm}'],
    ['EUR 60', '60 \\text{ dollars}'],
    ['60 m or 7 m', '60'],
    // Two answers
    ['5 \\text{ maybe 6}', '5'],
    ['5 \\text{ maybe6}', '5'],
    ['5\\text{ - not 6}', '5'],
    ['5 \\approx 7', '5'],
    ['5 = 5 \\approx 5 \\approx 7', '5'],
    ['\\sqrt2 \\approx -1.41', '\\sqrt2'],
    ['\\pi \\approx 3.4', '\\pi'],
    ['1234567 \\approx 1.23 \\times 10^7', '1234567'],
    ['x \\approx 3.14', 'x \\approx 3.2'],
    ['\\triangle ABC \\sim \\triangle DEF', '\\triangle ABC \\sim \\triangle EDF'],
    ['5%%', '5'],
    ['5\\% \\text{ percent}', '5'],
    ['45^\\circ{}^\\circ', '45'],
    // The problem's number is not its own conversion.
    ['54321_6', '7465'],
    ['Not: 60', '60'],
  ] as const
  for (const [a, b] of pairs) assertUnequalBothWays(a, b)
})

test('a base may be left out, behind a sign too', () => {
  for (const [a, b] of [
    ['52_8', '52'],
    ['-52_8', '-52'],
    ['110111_2', '110111'],
  ] as const)
    assertEqualBothWays(a, b)
})

test('ratios and times', () => {
  const pairs = [
    ['5:00', '05\\!:\\!00'],
    ['\\text{05:00}', '05\\!:\\!00'],
    ['5 \\text{ p.m.}', '05\\!:\\!00'],
    ['\\text{9:24}', '9:24'],
    ['09:24', '9:24'],
    ['9:24 a.m.', '9:24'],
    ['9:24 A.M.', '9:24 \\text{ a.m.}'],
    ['04:51:06', '4\\!:\\!51\\!:\\!06 \\text{ p.m.}'],
    ['6:10', '3:5'],
    ['12:24', '1:2'],
    ['38:120', '19:60'],
    ['19/60', '19:60'],
    ['0.5:1', '1:2'],
  ] as const
  for (const [a, b] of pairs) assertEqualBothWays(a, b)
})

test('a unit in plain text may be left out of the reference, but variables are variables', () => {
  const units =
    'm, g, L, h, s, m^2, m², m/s, km/h, km/hr, kph, eggs/day, yrs, men, sq. ft., sec, EUR, \\text{ sec}, \\text{ m}/\\text{sec}'
  for (const unit of units.split(', ')) assert.ok(isEqual(`60 ${unit}`, '60'), unit)
  const pairs = [
    ['USD 60', '60'],
    ['\\text{USD } 60', '60'],
    ['Answer: 60', '60'],
    ['The final answer: x = 60', '60'],
    ['-5 m', '-5'],
    ['3 1/2 m', '3.5'],
    ['2 \\times 10^{-3} m', '0.002'],
    ['5 \\pi m', '5 \\pi'],
    ['2\\sqrt{3} m', '2\\sqrt3'],
    ['d = 60 m', '60'],
    ['(1 m, -2 m)', '(1, -2)'],
  ] as const
  for (const [answer, reference] of pairs) assert.ok(isEqual(answer, reference), answer)
  assert.not(isEqual('3', '3 m'))
  assert.ok(isEqual('60', '60 km/h'))
  const both = [
    ['5 km/h', '5 \\text{ km/h}'],
    ['60 m/s', '60 \\text{ m/s}'],
    ['17m', '17\\text{ m}'],
    ['45 sec', '45 \\text{ seconds}'],
    ['45 sec', '0.75 \\text{ min}'],
    ['2 h 42 min', '162 \\text{ minutes}'],
    ['12 \\text{ grams}', '12 \\text{ gm}'],
    ['60 m', '60m'],
    ['2 abc', '2abc'],
    ['2gm', '2 g m'],
    ['2 sec 60°', '4'],
    ['2\\text{sec}(60^\\circ)', '4'],
  ] as const
  for (const [a, b] of both) assertEqualBothWays(a, b)
})

test('exponents of units, and values that are rounded behind ≈', () => {
  const pairs = [
    ['5\\text{ cm2}', '5\\text{ cm}^2'],
    ['5\\text{ m s}^{-1}', '5\\text{ m/s}'],
    ['5\\text{ cm$^2$}', '5'],
    ['x \\approx 3.14', '3.14'],
    ['x \\approx 3.14', 'x = 3.14'],
    ['x = \\sqrt2 \\approx 1.41', '\\sqrt2'],
    ['-\\sqrt2 \\approx -1.414', '-\\sqrt2'],
    ['\\frac23 \\approx 0.66', '\\frac23'],
    ['\\frac23 \\approx 66.67\\%', '\\frac23'],
    ['\\frac{50}{3} \\approx 16.67\\%', '\\frac{50}{3}'],
    ['5\\sqrt2\\text{ cm} \\approx 7.07\\text{ cm}', '5\\sqrt2'],
    ['10^{20}\\pi \\approx 3.14 \\times 10^{20}', '10^{20}\\pi'],
    ['2\\pi r \\approx 6.28 r', '2\\pi r'],
    ['\\arctan\\frac43 \\approx 53.13^\\circ', '\\arctan\\frac43'],
    ['\\frac23', '\\$\\dfrac23 \\approx \\$0.67'],
  ] as const
  for (const [a, b] of pairs) assertEqualBothWays(a, b)
})

test('the last box with balanced braces', () => {
  assert.is(extractBoxed('\\boxed{12}, within \\boxed{} or \\boxed{ }'), '12')
  assert.is(extractBoxed('\\boxed{} \\boxed{ }'), '')
  assert.is(extractBoxed('so \\boxed{1}, but then \\boxed{\\frac{1}{2}}.'), '\\frac{1}{2}')
  assert.is(extractBoxed('so $\\boxed{-2}$ and $\\boxed{1}$.'), '-2, 1')
  assert.is(extractBoxed('\\boxed{-2} or \\boxed{1}'), '-2 \\text{ or } 1')
  assert.is(extractBoxed('\\boxed{1}, \\boxed{1}'), '1')
  assert.is(extractBoxed('\\boxed{1}. \\boxed{2}'), '2')
  assert.is(extractBoxed('\\fbox{7}'), '7')
  assert.is(extractBoxed('\\boxed{x = \\boxed{3}}'), 'x = \\boxed{3}')
  assert.is(extractBoxed('\\boxed{1} then cut off \\boxed{\\frac{1}{2'), '1')
  assert.is(extractBoxed('\\boxed{\\{1, 2\\}}'), '\\{1, 2\\}')
  assert.is(extractBoxed('{ never closed \\boxed{4}'), '4')
  assert.is(extractBoxed('\\boxed 42$.'), '42')
  assert.is(extractBoxed('\\boxed  {42}'), '42')
  assert.is(extractBoxed('put it in \\boxed.'), undefined)
  assert.is(extractBoxed('\\boxedness{4}'), undefined)
  assert.is(extractBoxed(''), undefined)
})

test('verdicts have reasons', () => {
  assert.equal(verifyMath('so \\boxed{0.5}', '\\frac12'), {
    ...{ reward: 1, reason: 'correct: the same value', answer: '0.5' },
  })
  assert.is(verifyMath('\\boxed{ $2$ }', '3').answer, '2')
  assert.equal(verifyMath('so 0.5', '\\frac12'), { reward: 0, reason: 'no boxed answer' })
  assert.equal(verifyMath('\\boxed{}', '2'), { reward: 0, reason: 'the answer is empty' })
  assert.equal(verifyMath('\\boxed{\\frac{1}{}}', '2').reason, 'the answer cannot be read: empty braces')
  assert.equal(verifyMath('\\boxed{1/0}', '2').reason, 'not shown to be equal: a division by 0')
  assert.equal(verifyMath('\\boxed{(1, 2)}', '2').reason, 'a tuple or interval, not the value wanted')
  assert.equal(verifyMath('\\boxed{0.333}', '1/3').reason, 'not the same value')
  assert.is(math.checkAnswer(' '), 'answer must be a number or a text that is not empty')
  assert.is(math.checkAnswer(18), undefined)
  assert.is(math.checkAnswer('48/2 = 24 clips in May.\n#### 72'), undefined)
  assert.is(
    math.checkAnswer('48/2 = 24 clips in May.\n#### '),
    'answer must have the final answer behind ####',
  )
  assert.equal(math.verify('\\boxed{18.0}', 18, { id: 'p', prompt: '', columns: {} }), {
    reward: 1,
    reason: 'correct: the same value',
    answer: '18.0',
  })
})

/** Each pair lies within what a tolerance of a few digits would let through. */
test('near misses differ', () => {
  const pairs = [
    ['\\frac{1}{3}', '0.33333333333333333333333333333333333333'],
    ['\\sqrt{2}', '1.41421356237309504880168872420969807856967187537694'],
    ['\\pi', '\\frac{355}{113}'],
    ['e^{\\pi\\sqrt{163}}', '262537412640768744'],
    ['10^{-400}', '0'],
    ['10^{-400}\\pi', '0'],
    ['\\sqrt{2}+10^{-400}', '\\sqrt{2}'],
    ['2^{1000000}+1', '2^{1000000}'],
    ['x+10^{-60}', 'x'],
    ['\\sqrt{x^2}', 'x'],
    ['(x+1)^{100000}', '(x+1)^{100000}+1'],
    ['1+x^{-300}', '1'],
    ['\\pi 2^{1000000}+1', '\\pi 2^{1000000}'],
  ] as const
  for (const [a, b] of pairs) assertUnequalBothWays(a, b)
})

test('identities hold', () => {
  const pairs = [
    ['\\sqrt{2+\\sqrt{2+\\sqrt2}}', '2\\cos\\frac{\\pi}{16}'],
    ['\\sqrt[3]{2+\\sqrt5}+\\sqrt[3]{2-\\sqrt5}', '1'],
    ['\\sqrt{3-2\\sqrt2}-\\sqrt2+1', '0'],
    ['\\sin 4x', '4\\sin x\\cos x\\cos 2x'],
    ['\\cosh^2x-\\sinh^2x', '1'],
    ['\\ln(x^2)', '2\\ln x'],
    ['(-1)^n', '-(-1)^{n+1}'],
    ['\\frac{x^n-1}{x-1}\\sqrt{y}', '\\frac{1-x^n}{1-x}\\sqrt y'],
    ['\\cos(2\\pi/7)+i\\sin(2\\pi/7)', 'e^{2\\pi i/7}'],
    ['\\binom{n+1}{2}', '\\frac12(n^2+n)'],
    ['\\frac{-b\\pm\\sqrt{b^2-4ac}}{2a}', '-\\frac{b}{2a}\\pm\\frac{\\sqrt{b^2-4ac}}{2a}'],
    ['(1+\\sqrt2)^{100}(1-\\sqrt2)^{100}', '1'],
    ['2^{1000000}\\pi-\\pi', '\\pi(2^{1000000}-1)'],
  ] as const
  for (const [a, b] of pairs)
    assert.ok(isEqual(a, b) && isEqual(b, a), `${a} and ${b}: ${compareAnswers(a, b).reason}`)
})

/** Expressions as trees, written out in LaTeX. */
const expression = fc.letrec<{ tree: string }>(tie => ({
  tree: fc.oneof(
    { maxDepth: 4, withCrossShrink: true },
    fc.integer({ min: 0, max: 99 }).map(String),
    fc.constantFrom('x', 'y', '\\pi', '\\sqrt{2}', 'i', '0.5'),
    fc.tuple(tie('tree'), tie('tree')).map(([a, b]) => `\\frac{${a}}{${b}}`),
    fc
      .tuple(tie('tree'), fc.constantFrom('+', '-'), tie('tree'))
      .map(([a, sign, b]) => `\\left(${a}${sign}${b}\\right)`),
    fc.tuple(tie('tree'), tie('tree')).map(([a, b]) => `{${a}}\\cdot {${b}}`),
    fc.tuple(tie('tree'), fc.integer({ min: 2, max: 5 })).map(([a, n]) => `{\\left(${a}\\right)}^{${n}}`),
    tie('tree').map(a => `\\sin\\left(${a}\\right)`),
    tie('tree').map(a => `\\sqrt{${a}}`),
  ),
})).tree

const options = { seed: 6, numRuns: 300 }

test('every expression equals itself in other clothes, and not itself plus 1', () => {
  fc.assert(
    fc.property(expression, source => {
      const dressed = ` $\\displaystyle ${source.replaceAll('\\frac', '\\dfrac').replaceAll('\\left', '').replaceAll('\\right', '')}$. `
      assert.ok(isEqual(dressed, source), compareAnswers(dressed, source).reason)
      assert.not(isEqual(`${source}+1`, source))
    }),
    options,
  )
})

test('numbers: equal exactly where the fractions are', () => {
  const part = fc.integer({ min: -30, max: 30 })
  const denominator = fc.integer({ min: 1, max: 12 })
  fc.assert(
    fc.property(part, denominator, part, denominator, (a, b, c, d) => {
      assert.is(isEqual(`\\frac{${a}}{${b}}`, `${c}/${d}`), a * d === c * b)
      assert.is(isEqual(`\\frac{${a}}{${b}}\\sqrt{3}`, `\\frac{${c}\\sqrt{27}}{${3 * d}}`), a * d === c * b)
      assert.is(isEqual(`\\frac{${a}}{${b}}x+x^2`, `x(x+${c}/${d})`), a * d === c * b)
    }),
    options,
  )
})

test('decimals: equal exactly where the digits are', () => {
  fc.assert(
    fc.property(fc.nat(5000), fc.nat(5000), (a, b) => {
      assert.is(isEqual((a / 1000).toFixed(3), `\\frac{${b}}{1000}`), a === b)
    }),
    options,
  )
})

const symbols = fc.constantFrom(
  ..."0 1 2 x y i e + - * / ^ _ ( ) [ ] { } \\{ \\} | , ; = < > ! % ' . : & $ \\ ~".split(' '),
  ...'\\frac \\sqrt \\pi \\infty \\cup \\cap \\pm \\text{a} \\text{and} \\le \\ne \\in \\circ \\sin \\log \\binom'.split(
    ' ',
  ),
  ...'\\begin{pmatrix} \\end{pmatrix} \\\\ \\boxed{ \\overline{ \\mathbb{R} cm or π √ ² ° \\left \\right \\approx'.split(
    ' ',
  ),
)

test('whatever the text, there is a verdict; every text equals itself; the order makes no difference', () => {
  const text = fc.oneof(
    fc.array(symbols, { maxLength: 25 }).map(parts => parts.join('')),
    fc.string({ unit: 'binary', maxLength: 60 }),
  )
  fc.assert(
    fc.property(text, text, (a, b) => {
      if (a.trim() !== '') assert.ok(isEqual(a, a), a)
      assert.is(isEqual(a, b), isEqual(b, a))
      assert.type(verifyMath(a, b || '1').reason, 'string')
    }),
    { seed: 6, numRuns: 3000 },
  )
})

/**
 * Texts that a verifier without bounds hangs on or that overflow its stack. That they end, and how, is what is tested;
 * a count of steps bounds the work, so nothing depends on a clock.
 */
test('hostile texts end with a reason', () => {
  const repeat = (part: string, length: number) =>
    part.repeat(Math.ceil(length / part.length)).slice(0, length)
  const inner = [
    '10^{10^{10^{10^{10}}}}',
    '(2000!)!',
    `${repeat('2000!+', 900)}1`,
    `3${'!'.repeat(900)}`,
    'e^{e^{e^{e}}}',
    '\\sin(10^{700})',
    '(1+\\sqrt2)^{999999999}',
    '1e999999999',
    `\\sqrt{${repeat('1+', 900)}1}`,
    `${'('.repeat(2000)}1${')'.repeat(2000)}`,
    `${'\\frac{1}{1+'.repeat(300)}1${'}'.repeat(300)}`,
    `${repeat('\\sqrt{x+y}+', 2900)}1`,
    `${repeat('\\pm 1', 900)}`,
    `${repeat('\\sqrt{2},', 2900)}1`,
    `${repeat('(1,2)\\cup', 3000)}(3,4)`,
    `${repeat('-', 4000)}1`,
    `x^${repeat('-', 4000)}1`,
    `\\text{${repeat(' ', 3900)}a}`,
    repeat('7', 100_000),
    repeat('x+', 100_000),
    repeat('\\begin{pmatrix}', 100_000),
    repeat(' ', 100_000),
    repeat('$ ', 100_000),
  ]
  for (const answer of inner) {
    for (const reference of ['7', '\\sqrt2', 'x^2+1', '1,2', '(1,\\infty)', `${answer}+1`]) {
      const { reward, reason } = verifyMath(`\\boxed{${answer}}`, reference)
      assert.is(reward, 0, `${answer.slice(0, 30)} for ${reference.slice(0, 30)}`)
      assert.ok(reason.length > 0 && reason.length < 300)
    }
  }
  for (const part of ['\\boxed{', '\\boxed ', '{', '}', '\\boxed{1}{', '\\']) {
    assert.type(verifyMath(repeat(part, 100_000), '7').reason, 'string')
  }
})

/** All verdicts, with what ended them before. */
function verdicts(all: readonly { answer?: string; completion?: string; reference: string }[]) {
  return new Map(all.map(one => [one, verifyMath(completionOf(one), one.reference)]))
}

test('a verdict depends on its two texts alone: not on the clock, on chance, or on what was compared before', () => {
  const all = [...cases, ...modelCases, { answer: '0.1\\overline6', reference: '1/6' }]
  const expected = verdicts(all)
  assert.is(expected.get(all.at(-1)!)!.reward, 1)
  const real = [Date.now, performance.now, Math.random] as const
  const forbidden = () => assert.unreachable('a clock or chance') as never
  Object.assign(Date, { now: forbidden })
  Object.assign(performance, { now: forbidden })
  Object.assign(Math, { random: forbidden })
  try {
    for (const hostile of [
      '\\frac{'.repeat(50),
      '\\sqrt{2}^{'.repeat(20),
      '0.1\\overline',
      '9'.repeat(5000),
    ]) {
      verifyMath(`\\boxed{${hostile}}`, hostile)
    }
    const again = verdicts(all.toReversed())
    for (const one of all) assert.equal(again.get(one), expected.get(one), JSON.stringify(one))
  } finally {
    Object.assign(Date, { now: real[0] })
    Object.assign(performance, { now: real[1] })
    Object.assign(Math, { random: real[2] })
  }
})

const references = [...new Set([...cases, ...modelCases].map(({ reference }) => reference))]
/** What the reader of an answer does not see, or does not mind. */
const reformats: Record<string, (answer: string) => string> = {
  spaces: answer => ` ${answer.replaceAll(/(?<=[+=])|(?<=\))(?![\^_])/g, ' ')}  `,
  '\\dfrac': answer => answer.replaceAll(/\\[td]?frac(?![a-z])/g, '\\dfrac'),
  'no \\left': answer => answer.replaceAll(/\\(?:left|right)(?=[()[\]|])/g, ''),
  'dollar signs': answer => `$${answer}$`,
  '\\(': answer => `\\(${answer}\\)`,
  'trailing period': answer => (/[.:]$/.test(answer) ? answer : `${answer}.`),
  '\\displaystyle': answer => `\\displaystyle ${answer}`,
  bold: answer => `**${answer}**`,
  'x =': answer =>
    /[=<>,;:]|\\(?:le|ge|ne|in|text|pm|cup|pmod)|and|or|[A-Za-z]{4}/.test(answer) ? answer : `x = ${answer}`,
}

/** Mathematics' delimiters go around an answer, Markdown's asterisks around those; only one pair of delimiters. */
const around = (name: string) => (name === 'bold' ? 3 : /^(?:dollar|\\\()/.test(name) ? 1 : 0)

test('every reference equals itself after any two changes of its looks, whichever is the reference', () => {
  const names = Object.keys(reformats)
  fc.assert(
    fc.property(
      fc.constantFrom(...references),
      fc.constantFrom(...names),
      fc.constantFrom(...names),
      (reference, first, second) => {
        if (first === second || around(first) + around(second) === 2) return
        const [inner, outer] = around(first) > around(second) ? [second, first] : [first, second]
        const changed = reformats[outer]!(reformats[inner]!(reference))
        assert.ok(isEqual(changed, reference), `${changed}: ${compareAnswers(changed, reference).reason}`)
        assert.ok(isEqual(reference, changed), `${reference}: ${compareAnswers(reference, changed).reason}`)
      },
    ),
    { seed: 6, numRuns: 1500 },
  )
})

test('whatever is compared with whatever, the order makes no difference, but for percent and thousands', () => {
  const pair = fc.tuple(fc.constantFrom(...references), fc.constantFrom(...references))
  fc.assert(
    fc.property(pair, ([a, b]) => {
      if (/%|percent|\d,\d{3}/.test(a + b)) return
      assert.is(isEqual(a, b), isEqual(b, a), `${a} and ${b}`)
    }),
    { seed: 6, numRuns: 3000 },
  )
})

test('hostile texts of up to 100 kB: no more steps than one comparison has', () => {
  const { spend } = Budget.prototype
  let steps = 0
  let largest = 0
  Budget.prototype.spend = function (count) {
    steps += count
    largest = Math.max(largest, count)
    return spend.call(this, count)
  }
  try {
    const text = fc
      .tuple(fc.array(symbols, { minLength: 1, maxLength: 6 }), fc.integer({ min: 1, max: 100_000 }))
      .map(([parts, length]) => parts.join('').repeat(length).slice(0, length))
    fc.assert(
      fc.property(text, text, (a, b) => {
        steps = largest = 0
        verifyMath(`\\boxed{${a}}`, b)
        // The step that went too far counts as well, and what reading units may take (100 each, few of them).
        assert.ok(steps <= 10_000 + largest + 5_000, `${steps} steps`)
      }),
      { seed: 6, numRuns: 300 },
    )
  } finally {
    Budget.prototype.spend = spend
  }
})

test('the work is bounded: a comparison that needs more steps than there are is not equal', () => {
  const long = Array.from({ length: 60 }, (_, i) => `\\sin(x+${i})\\cos(\\sqrt{x+${i}})`)
  const { isEqual, reason } = compareAnswers(long.join('+'), long.toReversed().join('+'))
  assert.not(isEqual)
  assert.match(reason, 'more work than the verifier does')
})

/** Pairs by construction (bench/math_pairs.ts), from seeds that the measurement does not use. */
test('random values in every notation: no two different ones are equal, and of equal ones nearly all are', () => {
  const pairs = Array.from({ length: 3000 }, (_, i) => pairOf(1_000_000 + i))
  const wrong = pairs.filter(({ answer, reference, equal }) => isEqual(answer, reference) !== equal)
  const lines = wrong.map(({ answer, reference }) => `${answer} and ${reference}`)
  assert.equal(
    wrong.filter(({ equal }) => !equal),
    [],
    lines.join('\n'),
  )
  assert.ok(wrong.length <= 0.005 * pairs.length, lines.join('\n'))
})

test('cases by rule: each', () => {
  assert.equal(wrong(ruleCases), [])
  assert.ok(cases.length + modelCases.length + ruleCases.length >= 1200)
})

test('words behind a number: nouns and units say nothing, what denies, hedges or changes it does', () => {
  for (const words of [
    'eggs',
    'red apples',
    'square units',
    'different ways',
    'students in total',
    'people',
    '元',
    'Stück',
  ])
    assert.ok(isEqual(`31 \\text{ ${words}}`, '31'), words)
  for (const words of 'is wrong, not, maybe, less, or so, at most, dozen, thirds, squared, per thousand, million, negative, times, nope'.split(
    ', ',
  ))
    assert.not(isEqual(`31 \\text{ ${words}}`, '31'), words)
  for (const words of 'not, less than, at least, wrong:, the wrong answer is, nothing is, maybe, about'.split(
    ', ',
  ))
    assert.not(isEqual(`\\text{${words} } 31`, '31'), words)
  for (const prose of ['$31$ is wrong', 'not $31$', 'The answer is not $31$', 'either $30$ or $31$'])
    assert.not(isEqual(prose, '31'), prose)
})

test('where the answer is looked for', () => {
  const found = (completion: string) => extractions.map(where => extractAnswer(completion, where))
  assert.equal(found('so \\boxed{5}'), ['5', '5', '5'])
  assert.equal(found('The answer is 5.'), [undefined, '5', '5'])
  assert.equal(found('Answer: $x=3$'), [undefined, '$x=3$', '$x=3$'])
  assert.equal(found('Hence $x = 2$, $y = 3$.'), [undefined, undefined, 'x = 2, y = 3'])
  assert.equal(found('#### 72'), [undefined, '72', '72'])
  assert.equal(found('She has 18 dollars left.'), [undefined, undefined, '18 dollars left'])
  assert.equal(found("The answer isn't 5."), [undefined, undefined, undefined])
  assert.equal(found('It is 13 times larger.'), [undefined, undefined, '13 times larger'])
  assert.is(verifyMath('so 0.5', '\\frac12', { extract: 'final' }).reason, 'no final answer')
  assert.is(verifyMath('so 0.5', '\\frac12', { extract: 'any' }).reward, 1)
})

test('a tolerance is for decimals alone', () => {
  const near = (a: string, b: string, tolerance?: number | 'digits') =>
    compareAnswers(a, b, { tolerance }).isEqual
  assert.not(near('0.0833333333333333', '1/12'))
  assert.ok(near('0.0833333333333333', '1/12', 'digits'))
  assert.ok(near('0.0833333333333333', '1/12', 1e-6))
  assert.ok(near('(0.333333, 1)', '(1/3, 1)', 1e-5))
  assert.not(near('0.0834', '1/12', 'digits'))
  assert.not(near('0.1', '1/12', 'digits'))
  assert.not(near('1000001', '1000000', 1e-3))
  assert.not(near('0.333x', 'x/3', 1e-2))
})

test('a reference that is a whole solution: its last box, or what stands behind ####', () => {
  assert.ok(isEqual('72', '48/2 = 24 clips in May.\n#### 72'))
  assert.ok(isEqual('0.5', 'So the answer is $\\boxed{\\frac12}$.'))
  assert.not(isEqual('24', '48/2 = 24 clips in May.\n#### 72'))
})

test.run()
