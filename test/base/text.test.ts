import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { plural } from '../../lib/base/text.js'

test('one of a thing is told in the singular', () => {
  assert.equal(
    [0, 1, 2].map(count => plural(count, 'step')),
    ['0 steps', '1 step', '2 steps'],
  )
})

test.run()
