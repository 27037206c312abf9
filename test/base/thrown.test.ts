/** What a user's module throws is reported with the place in the user's file. */
import { mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { invalid } from '../../lib/base/errors.js'
import { importModule } from '../../lib/base/module.js'
import { reasonAndPlace } from '../../lib/base/thrown.js'
import { importTypeScript } from '../../lib/base/typescript.js'
import { loadVerifier } from '../../lib/reward/load.js'
import { judge } from '../../lib/reward/verifier.js'
import { makeTempDir } from '../helpers/fake-policy.js'

const dir = makeTempDir()
const module_ = (name: string, text: string) => {
  const file = path.join(dir, name)
  mkdirSync(path.dirname(file), { recursive: true })
  writeFileSync(file, text)
  return file
}
/** What is said of the error of a call, without the directory. */
async function told(call: () => unknown): Promise<string> {
  try {
    await call()
  } catch (error) {
    return reasonAndPlace(error).replaceAll(dir + path.sep, '')
  }
  throw new Error('nothing was thrown')
}

test('the innermost place in a file of the user’s, of a call and behind an await', async () => {
  const file = module_(
    'plain.mjs',
    [
      'export const now = () => {',
      "  throw new Error('boom')",
      '}',
      'export const later = async () => {',
      '  await new Promise(resolve => setTimeout(resolve, 1))',
      '  return undefined.length',
      '}',
      "export const inside = () => JSON.parse('{')",
    ].join('\n'),
  )
  const { now, later, inside } = (await import(file)) as Record<string, () => unknown>
  assert.is(await told(now!), 'boom (plain.mjs:2:9)')
  assert.match(await told(later!), /undefined.* \(plain\.mjs:6:20\)$/)
  assert.match(await told(inside!), /JSON.* \(plain\.mjs:8:34\)$/)
})

test('line and column of TypeScript that jiti compiles are those of the source', async () => {
  module_(
    'part.ts',
    'export function part<T extends string>(text: T): number {\n' +
      "  if ((text as string) === '') return 0\n" +
      '  const fault: Error = new RangeError(text)\n' +
      '  throw fault\n' +
      '}\n',
  )
  const file = module_(
    'typed.ts',
    "import { part } from './part.ts'\n" +
      'interface A {\n  x: number\n}\n' +
      'enum Kind {\n  One,\n}\n' +
      'export const called = () => part<string>("far")\n' +
      'export const own = (a: A | undefined = undefined): number => (a as unknown as A).x + Kind.One\n' +
      'export const later = async (): Promise<never> => {\n' +
      '  await Promise.resolve()\n' +
      '  const list: readonly number[] = []\n' +
      '  throw (list as number[]).length === 0 ? new Error("late") : undefined\n' +
      '}\n',
  )
  const { called, own, later } = (await importTypeScript(file)) as Record<string, () => unknown>
  assert.is(await told(called!), 'far (part.ts:3:24)')
  assert.match(await told(own!), /undefined.* \(typed\.ts:9:82\)$/)
  assert.is(await told(later!), 'late (typed.ts:13:43)')
  // The first line stands behind the head that jiti puts around a module.
  const one = (await importTypeScript(
    module_('one.ts', 'export const f = (): number => { throw new Error("one") }\n'),
  )) as Record<string, () => unknown>
  assert.match(await told(one.f!), /^one \(one\.ts:1(:38)?\)$/)
})

test('frames of rapo and of packages are passed over', async () => {
  const helper = module_(
    'node_modules/some/index.mjs',
    "export const check = () => { throw new Error('no such key') }",
  )
  const file = module_(
    'uses.mjs',
    `import { check } from ${JSON.stringify(helper)}\nexport default () => {\n  check()\n}\n`,
  )
  const verifier = await loadVerifier(file)
  const message = await judge(() => verifier.verify('', '', {} as never), 'problem "p"').then(
    () => '',
    error => (error as Error).message.replaceAll(dir + path.sep, ''),
  )
  assert.is(message, 'the verifier failed on problem "p": no such key (uses.mjs:3:3)')
})

test('an error of rapo is placed where a verifier called rapo, not where a program did', async () => {
  const verify = () => invalid('n is 0')
  const message = await judge(verify, 'p').catch(error => (error as Error).message)
  assert.match(message as string, /failed on p: n is 0 \(test.base.thrown\.test\.ts:\d+:\d+\)$/)
  assert.is(await told(() => invalid('n is 0')), 'n is 0')
})

test('what has no place, and what only looks as if it had one, keeps its text', async () => {
  const thrown = (value: unknown) =>
    told(() => {
      throw value
    })
  assert.is(await thrown('a text'), 'a text')
  assert.is(await thrown(undefined), 'undefined')
  assert.is(await thrown({ stack: 7, message: 'odd' }), '[object Object]')
  const evil = Object.assign(new Error('x'), { stack: 'Error: x\n    at a (relative.js:1:2)' })
  assert.is(await thrown(evil), 'x')
  const says = new Error('first\n    at lie (/nowhere.js:1:2)')
  assert.not.match(await thrown(says), /\(\/nowhere\.js:1:2\)$/)
})

test('a module that does not load names the place of its fault', async () => {
  const load = (name: string, text: string) =>
    told(() => importModule('task.verifier', module_(name, text))).then(text =>
      text.replace(/^.*did not load: /, ''),
    )
  assert.is(await load('top.mjs', 'const a = 1\nthrow new Error("top " + a)\n'), 'top 1 (top.mjs:2:7)')
  assert.match(
    await load('syntax.mjs', 'export default () => {\n  return 1 +\n}\n'),
    /Unexpected token .* \(syntax\.mjs:3:1\)$/,
  )
  assert.match(
    await load('lacks.mjs', "\nimport { nope } from 'node:fs'\nexport default nope\n"),
    /'nope' \(lacks\.mjs:2\)$/,
  )
  // The place that follows would be the one of whoever asked for the module.
  assert.match(
    await load('missing.mjs', "import './not-there.mjs'\n"),
    /not-there\.mjs' imported from missing\.mjs$/,
  )
})

test.run()
