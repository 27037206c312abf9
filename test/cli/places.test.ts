import { mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { explainPlaces } from '../../lib/cli/places.js'
import { parseConfig } from '../../lib/config/load.js'
import { makeTempDir } from '../helpers/fake-policy.js'

test('a path that lies beside the configuration, or one directory above, names that directory', () => {
  const dir = makeTempDir()
  mkdirSync(path.join(dir, 'configs'))
  const file = path.join(dir, 'configs', 'c.yaml')
  const config = parseConfig({
    model: { dir: 'my/model' },
    data: { train: 'their-problems.jsonl' },
    task: { verifier: './their-verifier.ts' },
  })
  const messageOf = (error: unknown, given: string | undefined = file) =>
    (explainPlaces(error, config, given) as Error).message
  const missing = (name: string) => new RapoError('ERR_RAPO_DATA', `there is no file ${name}`)
  assert.is(messageOf(missing('their-problems.jsonl')), 'there is no file their-problems.jsonl')
  writeFileSync(path.join(dir, 'their-problems.jsonl'), '')
  writeFileSync(path.join(dir, 'configs', 'their-verifier.ts'), '')
  const hint = (name: string, place: string) =>
    `there is no file ${name}\npaths start at the directory in which rapo is called; ${name} lies in ${path.relative('', place)}: call rapo there`
  assert.is(messageOf(missing('their-problems.jsonl')), hint('their-problems.jsonl', dir))
  const verifier = './their-verifier.ts'
  assert.is(messageOf(missing(verifier)), hint(verifier, path.join(dir, 'configs')))
  // Another path's fault, a fault of the program, and a configuration without a file stay as they are.
  assert.is(messageOf(missing('other.jsonl')), 'there is no file other.jsonl')
  const bug = new Error('their-problems.jsonl')
  assert.is(explainPlaces(bug, config, file), bug)
  const error = missing(verifier)
  assert.is(explainPlaces(error, config, undefined), error)
})

test.run()
