/** The command `rapo` as a clone has it after `npm ci`, and modules of the user's in TypeScript. */
import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { packageVersion } from '../../lib/base/package.js'
import { makeTempDir } from '../helpers/fake-policy.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const dir = makeTempDir()
const rapo = (...args: string[]) =>
  spawnSync(path.join(root, 'bin', 'rapo.mjs'), args, { cwd: dir, encoding: 'utf8' })

test('npm ci links rapo, which runs the sources of the clone', () => {
  const linked = spawnSync('npx', ['--no-install', 'rapo', '--version'], { cwd: root, encoding: 'utf8' })
  assert.is(linked.stdout, `${packageVersion}\n`, linked.stderr)
})

test('a failure is one line, and its exit status 1', () => {
  const { status, stderr } = rapo('train', '--config', 'none.yaml')
  assert.is(status, 1)
  assert.match(stderr, /^rapo: cannot read none\.yaml \(\/.*\/none\.yaml\): no such file or directory\n$/)
})

test('a verifier in TypeScript, with what Node.js alone cannot strip', () => {
  writeFileSync(path.join(dir, 'bonus.ts'), 'export enum Bonus {\n  None,\n  Full,\n}\n')
  writeFileSync(
    path.join(dir, 'verifier.ts'),
    `import { Bonus } from './bonus.js'
     const verify = (completion: string, answer: unknown) => ({
       reward: completion === answer ? Bonus.Full : Bonus.None,
       reason: 'compared' as string,
     })
     export default { checkAnswer: (_: unknown): undefined => undefined, verify }\n`,
  )
  writeFileSync(
    path.join(dir, 'in.jsonl'),
    '{"completion":"a","reference":"a"}\n{"completion":"b","reference":"a"}\n',
  )
  const { status, stderr } = rapo(
    'grade',
    '--task',
    './verifier.ts',
    '--input',
    'in.jsonl',
    '--output',
    'out.jsonl',
  )
  assert.is(status, 0, stderr)
  const verdicts = readFileSync(path.join(dir, 'out.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map(line => JSON.parse(line).correct)
  assert.equal(verdicts, [true, false])
})

test('a module in TypeScript that does not compile is named, with the place', () => {
  writeFileSync(path.join(dir, 'broken.ts'), 'export default {{{\n')
  const { status, stderr } = rapo('grade', '--task', './broken.ts', '--input', 'in.jsonl')
  assert.is(status, 1)
  assert.match(stderr, /^rapo: task\.verifier \.\/broken\.ts did not load: .*broken\.ts:[12]:\d+/)
})

test('what a verifier in TypeScript throws is placed in its source', () => {
  writeFileSync(
    path.join(dir, 'throws.ts'),
    `import { Bonus } from './bonus.js'
     interface Row { readonly best: Bonus }
     export default (completion: string): number => {
       const row = undefined as unknown as Row
       return (row as Row).best + Bonus.Full
     }\n`,
  )
  const { status, stderr } = rapo('grade', '--task', './throws.ts', '--input', 'in.jsonl')
  assert.is(status, 1)
  assert.match(stderr, /^rapo: the verifier failed on in\.jsonl:1: .*undefined.* \(throws\.ts:5:28\)\n/)
})

test('a command that waits for what nobody knows to be lost fails, too', () => {
  const script = `
    import { Command } from 'commander'
    Command.prototype.parseAsync = () => new Promise(() => {})
    const { main } = await import('./lib/cli/cli.ts')
    void main()`
  const { status, stderr } = spawnSync(
    process.execPath,
    ['--import', 'tsx', '--input-type=module', '-e', script],
    { cwd: root, encoding: 'utf8' },
  )
  assert.equal([status, stderr], [1, 'rapo: the command cannot end: what it waits for will never come\n'])
})

test.run()
