/**
 * Over the reference answers of SimpleRL's 8K problems, MATH-500 and AIME, where they are: RAPO_DATA names the
 * directory, else ../shared/data beside the clone. Skipped without them.
 */
import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { readProblems } from '../../lib/data/problems.js'
import { compareAnswers, math } from '../../lib/reward/math.js'

const beside = fileURLToPath(new URL('../../../shared/data', import.meta.url))
const dir = process.env.RAPO_DATA || beside
const counts = { 'simplerl8k.jsonl': 8523, 'math500.jsonl': 500, 'aime24.jsonl': 30, 'aime25.jsonl': 30 }
const missing = Object.keys(counts).filter(name => !existsSync(path.join(dir, name)))
const when = missing.length === 0 ? test : test.skip
if (missing.length > 0)
  console.log(`skipped: there is no ${missing.join(', ')} in ${dir} (RAPO_DATA names another directory)`)

const read = (name: string): string[] =>
  readFileSync(path.join(dir, name), 'utf8')
    .trim()
    .split('\n')
    .map(line => JSON.parse(line).answer)
const answers = missing.length > 0 ? [] : Object.keys(counts).flatMap(read)
const distinct = [...new Set(answers)].filter(answer => answer !== '')

when('the files are the ones that are meant', () => {
  for (const [name, count] of Object.entries(counts)) assert.is(read(name).length, count, name)
  assert.is(answers.filter(answer => answer === '').length, 2)
})

/** Commas between digits are left alone: "31,250" is a number, "31, 250" are two. */
const spaced = (answer: string) => ` ${answer.replaceAll(/(?<=[+=()])|(?<=,)(?!\d{3}(?!\d))/g, ' ')} `
/** The square brackets of \\sqrt[3] are left alone. */
const bracketed = (answer: string) => {
  const [open, close] = answer.includes('\\sqrt[') ? ['(', ')'] : ['([', ')\\]']
  return answer
    .replaceAll(/\\(?:left|right)(?![A-Za-z])/g, '')
    .replaceAll(new RegExp(`(?<!\\\\)([${open}])`, 'g'), '\\left$1')
    .replaceAll(new RegExp(`(?<!\\\\)([${close}])`, 'g'), '\\right$1')
}
const variants: Record<string, (answer: string) => string> = {
  itself: answer => answer,
  spaces: spaced,
  '\\dfrac': answer => answer.replaceAll(/\\t?frac/g, '\\dfrac'),
  '\\left(': bracketed,
  'dollar signs': answer => `$${answer}$`,
  'trailing period': answer => `${answer}.`,
}

for (const [name, change] of Object.entries(variants)) {
  when(`every reference answer equals itself with ${name}`, () => {
    const wrong = distinct
      .filter(answer => !compareAnswers(change(answer), answer).isEqual)
      .map(answer => `${change(answer)}: ${compareAnswers(change(answer), answer).reason}`)
    assert.equal(wrong, [])
  })
}

when('every value equals itself with x =', () => {
  const values = distinct.filter(answer => !/[=<>]|\\[lg]eq?(?![A-Za-z])|\\in(?![A-Za-z])/.test(answer))
  assert.ok(values.length > 2000)
  const wrong = values.filter(answer => !compareAnswers(`x=${answer}`, answer).isEqual)
  assert.equal(wrong, [])
})

when("no reference answer equals the next row's, unless they are the same", () => {
  const given = answers.filter(answer => answer !== '')
  const equal = given.flatMap((answer, i) => {
    const next = given[i + 1]
    return next !== undefined && answer !== next && compareAnswers(next, answer).isEqual
      ? [`${answer} ${next}`]
      : []
  })
  // The same, read by eye: 0.5; a degree sign, a percent sign and a unit that are left out.
  assert.equal(equal, ['\\frac{1}{2} 0.5', '36^\\circ 36', '100\\% 1', '2 2\\text{ miles}'])
})

when('rows that cannot be used are named', async () => {
  const file = path.join(dir, 'simplerl8k.jsonl')
  const message = await readProblems(file, math).then(
    () => 'nothing',
    error => error.message as string,
  )
  assert.match(message, '3 of 8523 cannot be used')
  assert.is(message.match(/answer must be a number or a text that is not empty/g)?.length, 2)
  assert.is(message.match(/has the problem that line \d+ has already/g)?.length, 1)
  const kept = await readProblems(file, math, { dropUnusable: true })
  assert.is(kept.length, 8520)
})

test.run()
