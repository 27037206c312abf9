/** Text that wants to steer a terminal, and the network, which only `rapo setup` may use. */
import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { HIDDEN, plainLine, plainText } from '../../lib/base/text.js'
import { describeError } from '../../lib/cli/cli.js'
import { cli } from '../helpers/cli.js'
import { makeTempDir } from '../helpers/fake-policy.js'
import { makeTinyModel } from '../helpers/tiny-model.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const dir = makeTempDir()
const model = await makeTinyModel()
/** Clears the screen, sets the title, turns red, in the seven-bit and the eight-bit form; and a line right to left. */
const evil = '\u001b[2J\u001b]0;owned\u0007\u001b[31m\u009b31m\u202egnp.exe\u007f\b'

const problems = path.join(dir, 'problems.jsonl')
const problem = (i: number) => ({
  id: `${evil}${i}`,
  prompt: `${i}=7:`,
  answer: '7',
  difficulty: `${evil}hard`,
})
writeFileSync(problems, [0, 1].map(i => `${JSON.stringify(problem(i))}\n`).join(''))

function rapo(...args: string[]) {
  const preload = ['--import', path.join(root, 'test', 'helpers', 'no-network.mjs')]
  return spawnSync(cli[0], [...preload, cli[1], ...args], {
    cwd: root,
    encoding: 'utf8',
    input: '',
  })
}

const settings = ['--sampling.max-new-tokens', '4', '--run.threads', '1']
const trainArguments = (name: string, verifier = 'exact') => [
  ...['train', '--model.dir', model, '--data.train', problems, '--task.verifier', verifier, ...settings],
  ...['--sampling.prompts-per-step', '2', '--sampling.group-size', '2', '--run.steps', '1'],
  ...['--run.output', path.join(dir, name)],
]

const isPlain = (text: string) => assert.not.match(text.replaceAll(/[^\P{C}\r\n\t]/gu, '\u0000'), '\u0000')

test('plainText: hidden characters are spelled as in JSON, the rest stays', () => {
  assert.is(plainText('a\tb\nc é 😀 ⁂'), 'a\tb\nc é 😀 ⁂')
  const spelled = plainText(`${evil}\u{e0041}\ud800\r\0`)
  assert.is(JSON.parse(`"${spelled}"`), `${evil}\u{e0041}\ud800\r\0`)
  assert.is(spelled.slice(0, 9), '\\u001b[2J')
  assert.not.match(spelled, HIDDEN)
  assert.is(plainLine('a\n\u001bb'), 'a \\u001bb')
})

test('an error message, and the stack of a fault, are plain', () => {
  assert.is(
    describeError(new RapoError('ERR_RAPO_DATA', `the completion ${evil}`), {}),
    `rapo: the completion ${plainText(evil)}`,
  )
  isPlain(describeError(new Error(evil), {}))
})

test('generate: what comes back on standard output is plain, and the same JSON', () => {
  const input = path.join(dir, 'in.jsonl')
  writeFileSync(input, `${JSON.stringify({ prompt: '1=7:', note: evil })}\n`)
  const { status, stdout, stderr } = rapo(
    'generate',
    '--model',
    model,
    '--input',
    input,
    '--max-new-tokens',
    '4',
  )
  assert.is(status, 0, stderr)
  isPlain(stdout + stderr)
  const { note, completions } = JSON.parse(stdout)
  assert.is(note, evil)
  assert.is(completions.length, 1)
})

test('train and eval: tables, progress and lines are plain, and nothing reaches the network', () => {
  const run = path.join(dir, 'run')
  const trained = rapo(...trainArguments('run'))
  assert.is(trained.status, 0, trained.stderr)
  isPlain(trained.stdout + trained.stderr)
  const evaluated = rapo('eval', '--model', run, '--data.eval', problems, '--n', '2', '--name', `${evil}name`)
  assert.is(evaluated.status, 0, evaluated.stderr)
  isPlain(evaluated.stdout + evaluated.stderr)
  // The table is there, with the names spelled out.
  assert.match(evaluated.stdout, `${plainText(evil)}hard (2 problems)`)
  assert.match(evaluated.stdout, `${plainText(evil)}name`)
  const reported = rapo('report', run, '--output', path.join(dir, 'report.html'))
  assert.is(reported.status, 0, reported.stderr)
})

test('a verifier that fails with what the model wrote: the message is plain', () => {
  const verifier = path.join(dir, 'verifier.mjs')
  writeFileSync(
    verifier,
    `export default { checkAnswer() {}, verify() { throw new Error(${JSON.stringify(evil)}) } }`,
  )
  const { status, stdout, stderr } = rapo(...trainArguments('failed', verifier))
  assert.is(status, 1)
  assert.match(stderr, plainText(evil))
  isPlain(stdout + stderr)
})

test('grade: standard output is plain, and the same JSON', () => {
  const input = path.join(dir, 'answers.jsonl')
  writeFileSync(input, `${JSON.stringify({ completion: evil, reference: evil, note: '  ' })}\n`)
  const { status, stdout, stderr } = rapo('grade', '--task', 'exact', '--input', input)
  assert.is(status, 0, stderr)
  isPlain(stdout + stderr)
  const { completion, reference, note, correct } = JSON.parse(stdout)
  assert.equal([completion, reference, note, correct], [evil, evil, '  ', true])
})

test('rows that are left out, and an option that there is not: the lines are plain', () => {
  const file = path.join(dir, 'unusable.jsonl')
  const rows = [problem(0), { ...problem(1), answer: '' }, { ...problem(0), prompt: 'another' }]
  writeFileSync(file, rows.map(row => `${JSON.stringify(row)}\n`).join(''))
  const args = trainArguments('dropped').map(value => (value === problems ? file : value))
  const { status, stdout, stderr } = rapo(...args, '--data.drop-unusable', 'true')
  assert.is(status, 0, stderr)
  assert.match(stderr, 'left out, 2 in all')
  assert.match(stderr, plainText(evil))
  isPlain(stdout + stderr)
  const unknown = rapo('train', `--${evil}`)
  assert.match(unknown.stderr, `unknown option '--${plainText(evil)}'`)
  isPlain(unknown.stderr)
})

test('commands print by way of lib/base/text.ts alone', () => {
  const printing = /(?:\bconsole\.\w+\(|process\.std(?:out|err)\.write|emitWarning\((?!\s*plainLine))/
  const lib = path.join(root, 'lib')
  const sources = readdirSync(lib, { recursive: true, encoding: 'utf8' }).filter(name => name.endsWith('.ts'))
  assert.equal(
    sources.filter(name => printing.test(readFileSync(path.join(lib, name), 'utf8'))).sort(),
    // The first knows no module but its own, and shows an error of the caller's; the last holds programs for a child process.
    [path.join('base', 'call.ts'), path.join('base', 'text.ts'), path.join('cli', 'doctor.ts')],
  )
})

test('the guard of these tests works: a connection ends the process', () => {
  const file = path.join(dir, 'fetching.mjs')
  for (const attempt of [
    "fetch('http://127.0.0.1:9')",
    "(await import('node:net')).connect(9, '127.0.0.1')",
  ]) {
    writeFileSync(file, `await ${attempt}`)
    const { status, stderr } = spawnSync(
      process.execPath,
      ['--import', path.join(root, 'test', 'helpers', 'no-network.mjs'), file],
      {
        encoding: 'utf8',
      },
    )
    assert.is(status, 97, stderr)
  }
})

test('only the hub’s client, rollout servers and ranks reach the network, and pip, which rapo setup runs', () => {
  const lib = path.join(root, 'lib')
  const reaching =
    /from '(?:node:)?(?:https?|http2|net|tls|dns|dgram)(?:\/promises)?'|\bfetch\(|'undici'|\bWebSocket\b|'(?:curl|wget)'/
  const sources = readdirSync(lib, { recursive: true, encoding: 'utf8' }).filter(name => name.endsWith('.ts'))
  assert.ok(sources.length > 40)
  const contentOf = (name: string) => readFileSync(path.join(lib, name), 'utf8')
  assert.equal(sources.filter(name => reaching.test(contentOf(name))).sort(), [
    path.join('model', 'hub-client.ts'),
    // Servers that rollouts.urls names.
    path.join('rollout', 'servers', 'http.ts'),
    // The address of this machine that the other ranks reach.
    path.join('world', 'place.ts'),
  ])
  const installing = sources.filter(name => /'pip'|\bpip3?\b.*install/.test(contentOf(name)))
  assert.ok(
    installing.every(name => name.startsWith(`setup${path.sep}`)),
    installing.join(),
  )
})

test.run()
