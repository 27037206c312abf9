import { spawnSync } from 'node:child_process'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
// @ts-expect-error: no types
import { buildModulesCheck } from '../../scripts/modules-check.mjs'

test('modules of users load without tsx, TypeScript and JavaScript, whatever the type of their package', async () => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [await buildModulesCheck()], {
    encoding: 'utf8',
  })
  assert.is(status, 0, `${stdout}${stderr}`)
})

test.run()
