/** The objective's table of numbers, which the kernels, the checks, the configuration and its help share. */
import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { fields } from '../../lib/config/help.js'
import { parseConfig } from '../../lib/config/load.js'
import { describeRange, numberEntries, objectiveNumbers } from '../../lib/loss/fields.js'
import { policyLoss } from '../../lib/loss/kernels.js'
import {
  defineObjective,
  type Objective,
  penalties,
  rapo,
  sapo,
  surrogates,
} from '../../lib/loss/objective.js'
import { rowArrays, rowOutputs } from '../../lib/loss/rows.js'
import { raw, small } from '../helpers/kernels-cases.js'

test('the lists of TypeScript are those of the kernels', () => {
  const lists = raw.lists()
  const numbers = numberEntries.map(([name, { default: value, low, open = false, high }]) => [
    name,
    { default: value, low, open, high },
  ])
  assert.equal(Object.entries(lists.numbers), numbers)
  assert.equal(lists.penalties, [...penalties])
  assert.equal(lists.surrogates, [...surrogates])
  assert.equal(lists.rowArrays, Object.keys(rowArrays))
  assert.equal(lists.rowOutputs, Object.keys(rowOutputs))
})

/** An objective in which the field is read. */
function baseFor(name: keyof typeof objectiveNumbers): Objective {
  return { ...(name.startsWith('sapo') ? sapo({ penalty: 'forward' }) : rapo({ clipHigh: 0 })) }
}

test('every bound is the same in TypeScript and in the kernels', () => {
  const next = (x: number, up: boolean) => {
    const [number, bits] = [new Float64Array([x]), 0]
    const word = new BigInt64Array(number.buffer)
    if (x === 0) return up ? Number.MIN_VALUE : -Number.MIN_VALUE
    word[0]! += up === x > 0 ? 1n : -1n
    return number[bits]!
  }
  for (const [name, { low, open, high }] of numberEntries) {
    const inside = [open ? next(low, true) : low, high]
    const outside = [open ? low : next(low, false), Number.NaN, -1]
    if (high !== Infinity) outside.push(high === Number.MAX_VALUE ? Infinity : next(high, true))
    const accepts = (value: number) => {
      const objective = { ...baseFor(name), [name]: value }
      const call = { ...small(), objective, rows: 2, dtype: 'float32' }
      const verdicts = [() => defineObjective(objective), () => raw.policyLoss(call)].map(run => {
        try {
          run()
          return true
        } catch (error) {
          const { code, message } = error as RapoError
          assert.instance(error, RapoError)
          if (code === 'ERR_RAPO_NON_FINITE') return true // a number so large is in the range, but not its product
          assert.is(code, 'ERR_RAPO_INVALID_ARGUMENT')
          assert.match(message, new RegExp(`^${name} is |sapo does not clip`))
          return false
        }
      })
      assert.is(verdicts[0], verdicts[1], `${name} ${value}`)
      return verdicts[0]
    }
    for (const value of inside)
      assert.ok(accepts(value), `${name} ${value}, ${describeRange(objectiveNumbers[name])}`)
    for (const value of outside) assert.not.ok(accepts(value), `${name} ${value}`)
  }
})

test('the configuration has the same numbers, ranges and help', () => {
  const minimal = { model: { dir: 'm' }, task: { verifier: 'exact' } }
  for (const [name, field] of numberEntries) {
    const shown = fields.find(({ path }) => path === `objective.${name}`)
    if (name === 'temperature') {
      assert.is(shown, undefined)
      continue
    }
    assert.is(shown!.help, field.help)
    const bounds = [`${field.open ? '>' : '≥'} ${field.low}`]
    if (field.high < Number.MAX_VALUE) bounds.push(`≤ ${field.high}`)
    assert.is(shown!.range, `a number ${bounds.join(' and ')}`)
    const wrong = field.open ? field.low : field.low - 1
    assert.throws(
      () => parseConfig({ ...minimal, objective: { [name]: wrong } }),
      new RegExp(`objective.${name} is`),
    )
  }
})

test('docs/objective.md has the table', () => {
  const text = readFileSync(new URL('../../docs/objective.md', import.meta.url), 'utf8')
  for (const [name, field] of numberEntries) {
    const line = `| \`${name}\` | ${describeRange(field)} | ${field.default} | ${field.help} |`
    assert.ok(text.includes(`\n${line}\n`), line)
  }
})

test('a field that is left out has the default of the table', () => {
  const { penalty, ...rest } = rapo()
  const batch = { ...small(), rows: 2, dtype: 'float32' }
  const bare = raw.policyLoss({ ...batch, objective: { penalty, klCoef: 0.02, entropyCoef: 0.003 } })
  assert.equal(bare, raw.policyLoss({ ...batch, objective: { penalty, ...rest } }))
  assert.equal(bare, policyLoss(small(), rapo()).metrics)
})

test.run()
