import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { createRandom } from '../../lib/base/random.js'
import { readProblems } from '../../lib/data/problems.js'
import {
  type CountdownAnswer,
  countdown,
  MAX_DEPTH,
  MAX_LENGTH,
  verifyCountdown,
} from '../../lib/reward/countdown.js'
import { listProblems, promptOf, solve } from '../../scripts/countdown-solver.js'
import { makeTempDir } from '../helpers/fake-policy.js'

const files = ['data/countdown/train.jsonl', 'data/countdown/test.jsonl']
const answer: CountdownAnswer = { numbers: [3, 5, 7], target: 22 }
const reasonFor = (text: string, problem = answer) => {
  const { reward, reason } = verifyCountdown(text, problem)
  assert.is(reward, reason === 'correct' ? 1 : 0)
  return reason
}

test('accepts every way to write a right expression', () => {
  for (const text of ['3*5+7', '7+5*3', '(3*5)+7', '((3)*(5)+7)', ' 3 *\t5\n+ 7 ']) {
    assert.is(reasonFor(text), 'correct', text)
  }
})

test('precedence, associativity and exact division', () => {
  const value = (text: string, numbers: number[], target: number) => reasonFor(text, { numbers, target })
  assert.is(value('2+3*4', [2, 3, 4], 14), 'correct')
  assert.is(value('9-4-3', [9, 4, 3], 2), 'correct')
  assert.is(value('9-(4-3)', [9, 4, 3], 8), 'correct')
  assert.is(value('12/6/2', [12, 6, 2], 1), 'correct')
  assert.is(value('12/(6/2)', [12, 6, 2], 4), 'correct')
  assert.is(value('12/6*2', [12, 6, 2], 4), 'correct')
  // A fraction on the way: 8/(3-8/3) = 24. Floating point gives 23.999999999999996.
  assert.is(value('8/(3-8/3)', [8, 3, 8, 3], 24), 'correct')
  // A negative value on the way.
  assert.is(value('(3-5)*(1-8)', [3, 5, 1, 8], 14), 'correct')
  assert.is(value('(3-5)/(1-8)', [3, 5, 1, 8], 14), 'equals 2/7, not 14')
  assert.is(value('1/3', [1, 3], 0), 'equals 1/3, not 0')
})

test('each number at most as often as it is given, not all need be used', () => {
  assert.is(reasonFor('5+7', { numbers: [3, 5, 7], target: 12 }), 'correct')
  assert.is(reasonFor('5+5', { numbers: [5, 5, 7], target: 10 }), 'correct')
  assert.is(reasonFor('5+5', { numbers: [5, 7], target: 10 }), 'uses 5 more often than given')
  assert.is(reasonFor('11+11'), '11 is not given')
  assert.is(reasonFor('22'), '22 is not given')
  assert.is(reasonFor('35+7', { numbers: [3, 5, 7], target: 42 }), '35 is not given')
})

test('a malformed answer is worth 0, and says why', () => {
  const cases: [string, string][] = [
    ['', 'expected a number or "(" but found the end at position 1'],
    ['   ', 'expected a number or "(" but found the end at position 4'],
    ['3*5+', 'expected a number or "(" but found the end at position 5'],
    ['3*5+7=22', 'expected an operator or the end but found "=" at position 6'],
    ['(3*5+7', 'expected ")" but found the end at position 7'],
    ['3*5+7)', 'expected an operator or the end but found ")" at position 6'],
    ['3 5', 'expected an operator or the end but found "5" at position 3'],
    ['-3+5', 'expected a number or "(" but found "-" at position 1'],
    ['3**5', 'expected a number or "(" but found "*" at position 3'],
    ['()', 'expected a number or "(" but found ")" at position 2'],
    ['3.0*5+7', 'expected an operator or the end but found "." at position 2'],
    ['03*5+7', '03 is not given'],
    ['3e0*5+7', 'expected an operator or the end but found "e" at position 2'],
    ['３*5+7', 'expected a number or "(" but found "３" at position 1'],
    ['process.exit(1)', 'expected a number or "(" but found "p" at position 1'],
    ['3*5+7<eos>', 'expected an operator or the end but found "<" at position 6'],
    ['7/(5-5)', 'uses 5 more often than given'],
    [`3*5+7${' '.repeat(MAX_LENGTH)}`, `longer than ${MAX_LENGTH} characters`],
    [`${'('.repeat(MAX_DEPTH + 1)}3`, `brackets deeper than ${MAX_DEPTH}`],
    ['3', 'equals 3, not 22'],
  ]
  for (const [text, reason] of cases) assert.is(reasonFor(text), reason, text)
  assert.is(reasonFor('7/(5-5)', { numbers: [5, 5, 7], target: 1 }), 'divides by zero')
  const deep = `${'('.repeat(MAX_DEPTH)}3*5+7${')'.repeat(MAX_DEPTH)}`
  assert.is(reasonFor(deep), 'correct')
})

test('numbers of any size are exact', () => {
  // 2^53 − 1 squared is beyond what a double holds.
  const big = Number.MAX_SAFE_INTEGER
  const numbers = [big, big, big, 1]
  assert.is(reasonFor(`${big}*${big}/${big}`, { numbers, target: big }), 'correct')
  assert.is(reasonFor(`(${big}*${big}+1)/${big}`, { numbers, target: big }).slice(0, 6), 'equals')
  assert.is(reasonFor(`${big}0`, { numbers, target: big }), `${big}0 is not given`)
})

test('random texts never throw, and a right one is right by double arithmetic too', () => {
  const random = createRandom(11)
  const pieces = [...'3557()+-*/ ', '12', '(3', '5)', '3*5', '+7', '=', 'x', '', '\n', '0']
  const problem = { numbers: [3, 5, 5, 7, 12], target: 22 }
  let right = 0
  for (let i = 0; i < 300_000; i++) {
    const text = Array.from({ length: 1 + random.below(9) }, () => random.pick(pieces)).join('')
    const { reward, reason } = verifyCountdown(text, problem)
    assert.ok(reward === 0 || reward === 1)
    assert.ok(reason.length > 0)
    if (reward === 0) continue
    right++
    assert.match(text, /^[\d+\-*/() \n]+$/)
    // The one place where text is evaluated: it is digits, operators and brackets.
    const value = Function(`return (${text})`)()
    assert.ok(Math.abs(value - problem.target) < 1e-9, text)
    const used = [...text.matchAll(/\d+/g)].map(Number)
    for (const number of new Set(used)) {
      const count = (list: number[]) => list.filter(other => other === number).length
      assert.ok(count(used) <= count(problem.numbers), text)
    }
  }
  assert.ok(right > 100, `only ${right} right ones: the test says little`)
})

test('random expressions have the value that double arithmetic gives', () => {
  const random = createRandom(12)
  const write = (numbers: number[]): string => {
    if (numbers.length === 1) return String(numbers[0])
    const cut = 1 + random.below(numbers.length - 1)
    const inner = `${write(numbers.slice(0, cut))}${random.pick(['+', '-', '*', '/'])}${write(numbers.slice(cut))}`
    return random.float() < 0.5 ? `(${inner})` : inner
  }
  let whole = 0
  for (let i = 0; i < 20_000; i++) {
    const numbers = Array.from({ length: 2 + random.below(4) }, () => 1 + random.below(12))
    const text = write(numbers)
    const value: number = Function(`return ${text}`)()
    const target = Number.isFinite(value) ? Math.round(value) : 1
    const isClose = Number.isFinite(value) && Math.abs(value - target) < 1e-9
    const { reward, reason } = verifyCountdown(text, { numbers, target })
    // Doubles go on with Infinity, and may come back to a finite value: 7/(7/(7-7)) = 0.
    if (reason === 'divides by zero') continue
    assert.is(reward, isClose ? 1 : 0, `${text} = ${value}`)
    if (isClose) whole++
  }
  assert.ok(whole > 5000)
})

test('a problem with a broken answer is refused before anything is sampled', () => {
  const faults = [
    undefined,
    null,
    '22',
    {},
    { numbers: [], target: 1 },
    { numbers: [1, 0], target: 1 },
    { numbers: [1, 1.5], target: 1 },
    { numbers: [1], target: 0.5 },
    { numbers: [1], target: '1' },
    { numbers: Array(17).fill(1), target: 1 },
  ]
  for (const fault of faults) assert.type(countdown.checkAnswer(fault), 'string', JSON.stringify(fault))
  assert.is(countdown.checkAnswer(answer), undefined)
})

test('the solver: its texts have the value it says, and it finds a solution exactly where there is one', () => {
  for (const numbers of [
    [3, 5, 7],
    [1, 1, 1],
    [2, 6, 12],
    [8, 3, 8],
  ]) {
    for (const [target, solutions] of solve(numbers)) {
      for (const { text, isPlain } of solutions) {
        assert.is(reasonFor(text, { numbers, target }), 'correct', text)
        assert.is(isPlain, !/[*/()]/.test(text))
      }
    }
  }
  assert.equal(
    solve([3, 5, 7])
      .get(22)
      ?.map(solution => solution.text)
      .sort(),
    ['3*5+7', '5*3+7', '7+3*5', '7+5*3'],
  )
})

test('the data: disjoint, solvable, labelled by the rule, the target out of reach of fewer numbers', async () => {
  const byPrompt = new Map(listProblems().map(problem => [promptOf(problem), problem]))
  const seen = new Set<string>()
  for (const file of files) {
    const problems = await readProblems(file, countdown)
    for (const { prompt, answer, difficulty } of problems) {
      const { numbers, target } = answer as CountdownAnswer
      const problem = byPrompt.get(prompt)
      assert.ok(problem, prompt)
      assert.equal(problem.numbers, numbers)
      assert.is(problem.target, target)
      assert.is(problem.difficulty, difficulty)
      const plain = problem.solutions.filter(solution => !/[*/()]/.test(solution.text))
      assert.is(difficulty, plain.length > 0 ? 'easy' : 'hard')
      assert.not(seen.has(prompt), prompt)
      seen.add(prompt)
    }
    const hard = problems.filter(problem => problem.difficulty === 'hard').length
    assert.equal([problems.length, hard], file.includes('test') ? [128, 64] : [5121, 3414])
  }
})

test('the script makes the committed files, byte for byte', () => {
  const dir = makeTempDir()
  const args = ['--import', 'tsx', 'scripts/make-countdown-data.ts', '--output', dir]
  const { status, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' })
  assert.is(status, 0, stderr)
  for (const file of files) {
    assert.ok(readFileSync(path.join(dir, path.basename(file))).equals(readFileSync(file)), file)
  }
})

test.run()
