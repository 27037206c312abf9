/** What is never settled, in processes of their own: they have nothing left to do. */
import { spawnSync } from 'node:child_process'
import { getEventListeners } from 'node:events'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { waitFor } from '../../lib/base/wait.js'
import { makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** What the promises of a program, which are its last line, became: a line each, in the order of the lines. */
function outcomes(program: string): string[] {
  const settle = `const all = await Promise.allSettled(promises)
    for (const { reason, value } of all) console.log(reason?.message ?? value)`
  const args = ['--import', 'tsx', '--input-type=module', '-e', `${program}\n${settle}`]
  const { stdout, stderr, status } = spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8' })
  assert.is(status, 0, stderr)
  return stdout.trim().split('\n')
}

test('a call is told that it cannot end, but first whoever in it knows what never comes', () => {
  const [outer, inner, one, two] = outcomes(`
    import { waitFor, whole } from './lib/base/wait.ts'
    const never = new Promise(() => {})
    const fault = name => ({ fault: () => new Error(name) })
    const promises = [
      whole('first', never),
      whole('second', waitFor(never, fault('inner'))),
      ...['one', 'two'].map(name => waitFor(never, fault(name))),
    ]
    // What goes on after it is told of: the first call is then alone.
    promises[1].catch(() => setImmediate(() => {}))`)
  assert.match(outer!, /^first cannot end: a promise that it waits for/)
  assert.equal([inner, one, two], ['inner', 'one', 'two'])
})

test('waiting that is over leaves no listener', async () => {
  const { signal } = new AbortController()
  const before = process.listenerCount('beforeExit')
  const waits = [Promise.resolve(1), Promise.reject(new Error('of the work'))].map(work =>
    waitFor(work, { signal, timeout: 1e6, fault: () => new Error('never') }),
  )
  assert.is(process.listenerCount('beforeExit'), before + 1)
  assert.is(getEventListeners(signal, 'abort').length, 2)
  const [one, two] = await Promise.allSettled(waits)
  assert.equal([one!.status, two!.status], ['fulfilled', 'rejected'])
  assert.is(getEventListeners(signal, 'abort').length, 0)
  assert.is(process.listenerCount('beforeExit'), before)
})

test('a policy of the caller that never comes: train and evaluate say so', () => {
  const model = makeFakeModel()
  const output = path.join(makeTempDir(), 'run')
  const errors = outcomes(`
    import { evaluate, train } from './lib/index.ts'
    import { makeConfig } from './test/helpers/train-child.ts'
    const loadPolicy = () => new Promise(() => {})
    const config = makeConfig(${JSON.stringify(output)}, ${JSON.stringify(model)})
    const options = { dir: config.model.dir, model: 'm', name: 'n', output: config.run.output, loadPolicy }
    const measured = { ...config, data: { ...config.data, eval: config.data.train } }
    const promises = [train(config, { loadPolicy }), evaluate(measured, options)]`)
  for (const [i, name] of ['train', 'evaluate'].entries()) {
    assert.match(errors[i]!, `${name} cannot end: a promise that it waits for, perhaps of loadPolicy`)
  }
})

test.run()
