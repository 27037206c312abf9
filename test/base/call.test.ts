import { once } from 'node:events'
import { setImmediate as turn } from 'node:timers/promises'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { watched } from '../../lib/base/call.js'
import { reasonOf } from '../../lib/base/errors.js'

const boom = new Error('boom')
const failing = {
  throws: () => {
    throw boom
  },
  rejects: () => Promise.reject(boom),
  'has a then that throws': () => Object.defineProperty({}, 'then', { get: failing.throws }),
}

test("what a user's function throws aborts a signal, and the function is not called again", async () => {
  for (const [how, body] of Object.entries(failing)) {
    let calls = 0
    const told = watched('onThing', (...args: number[]) => {
      calls += args.length
      return body()
    })
    told.call(1, 2)
    await turn()
    told.call(3)
    assert.is(calls, 2, how)
    assert.is(told.failed.reason, boom, how)
  }
})

test('an error when the work is done, or found then, is a warning: once, with the name of the function', async () => {
  for (const [how, body] of Object.entries(failing)) {
    for (const isEarly of [true, false]) {
      const told = watched('onThing', body)
      const warned = once(process, 'warning')
      if (isEarly) told.call()
      await turn()
      told.finish()
      told.call()
      const [warning] = await warned
      assert.is(warning.name, 'RapoWarning', how)
      assert.match(warning.message, /^onThing failed; the call's result is kept: Error: boom/, how)
    }
  }
})

test('a function that is absent, or does not fail, is no failure', async () => {
  const warnings: Error[] = []
  const note = (warning: Error) => warnings.push(warning)
  process.on('warning', note)
  for (const body of [undefined, () => 3, async () => 3]) {
    const told = watched('onThing', body)
    told.call()
    told.finish()
    told.call()
    await turn()
    assert.not(told.failed.aborted)
  }
  process.off('warning', note)
  assert.equal(warnings, [])
})

test('whatever is thrown has a text', () => {
  assert.is(reasonOf(boom), 'boom')
  assert.is(reasonOf(null), 'null')
  assert.is(reasonOf(3n), '3')
  assert.is(reasonOf(Object.create(null)), 'what was thrown cannot be shown as a text')
  assert.is(reasonOf(Object.assign(new Error(), { message: Symbol('s') })), 'Symbol(s)')
})

test.run()
