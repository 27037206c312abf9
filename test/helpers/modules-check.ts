/**
 * A program that loads modules of a user's, bundled to one file so that Node.js alone is there: no tsx. test/base/module.test.ts
 * runs it on the Node.js of the tests, scripts/test-prebuilds.mjs on others.
 */
import { mkdirSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { importModule } from '../../lib/base/module.js'

const dir = realpathSync(mkdtempSync(path.join(tmpdir(), 'rapo-modules-')))
test.after(() => rmSync(dir, { recursive: true, force: true }))

const warnings: string[] = []
process.on('warning', ({ name, message }) => {
  // Node.js 22 says so of every file that it strips types from, and of a package without a type that its files have one.
  if (name !== 'ExperimentalWarning' && !message.includes('is not specified')) warnings.push(message)
})

const modules: Readonly<Record<string, string>> = {
  'verifier.ts': `import { worth } from './worth.ts'
    export default (completion: string): number => worth(completion)`,
  'worth.ts': 'export const worth = (text: string): number => text.length',
  'verifier.js': `import { worth } from './count.js'
    export default completion => worth(completion)`,
  'count.js': 'export const worth = text => text.length',
  'verifier.cts': 'module.exports = { default: (text: string): number => text.length }',
  'verifier.mts': 'export default (text: string): number => text.length',
  'verifier.cjs': 'module.exports = { default: text => text.length }',
  'verifier.mjs': 'export default text => text.length',
}

for (const type of ['commonjs', 'module', undefined]) {
  test(`modules in a package of type ${type}`, async () => {
    const place = path.join(dir, String(type))
    mkdirSync(place)
    writeFileSync(path.join(place, 'package.json'), JSON.stringify({ type }))
    for (const [name, text] of Object.entries(modules)) writeFileSync(path.join(place, name), text)
    for (const name of Object.keys(modules).filter(name => name.startsWith('verifier'))) {
      const loaded = await importModule('task.verifier', path.join(place, name))
      const found = loaded.default as { default?: unknown }
      const verify = (typeof found === 'function' ? found : found.default) as (text: string) => number
      assert.is(verify('four'), 4, name)
    }
    assert.equal(warnings, [])
  })
}

test.run()
