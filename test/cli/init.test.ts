/** `rapo init`, and that what it writes runs at once, in the commands that it prints. */
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { makeTempDir } from '../helpers/fake-policy.js'

const bin = fileURLToPath(new URL('../../bin/rapo.mjs', import.meta.url))
const dir = makeTempDir()
const project = path.join(dir, 'mine', 'first')
const rapo = (cwd: string, ...args: string[]) => spawnSync(bin, args, { cwd, encoding: 'utf8' })
const names = ['problems.jsonl', 'rapo.yaml', 'verifier.ts']

test('init writes three files, and none over another', () => {
  const { status, stdout, stderr } = rapo(dir, 'init', 'mine/first')
  assert.is(status, 0, stderr)
  assert.equal(stdout.split('\n'), [
    'wrote rapo.yaml, verifier.ts, problems.jsonl; to try, train and measure:',
    '  cd mine/first',
    '  npx rapo train --config rapo.yaml --dry-run',
    '  npx rapo train --config rapo.yaml',
    '  npx rapo eval --model runs/rapo',
    '',
  ])
  assert.equal(readdirSync(project).sort(), names)
  assert.is(readFileSync(path.join(project, 'problems.jsonl'), 'utf8').trim().split('\n').length, 5)
  const other = makeTempDir()
  writeFileSync(path.join(other, 'verifier.ts'), 'mine')
  const again = rapo(other, 'init')
  assert.is(again.status, 1)
  assert.match(again.stderr, `rapo: ${other} has verifier.ts already: name another directory`)
  assert.equal(readdirSync(other), ['verifier.ts'])
})

test('the verifier that init writes judges by value and by the numbers used', () => {
  const answer = { numbers: [2, 4, 7], target: 1 }
  const cases: [string, boolean, string][] = [
    ['7-4-2', true, 'correct'],
    ['7-(4+2)', true, 'correct'],
    ['7-4+2', false, 'equals 5'],
    ['7-4', false, 'every number must be used once'],
    ['2//4//7', false, 'this is no sum'],
    ['7**4-2', false, 'this is no sum'],
    ['(7-4-2', false, 'the brackets do not fit'],
  ]
  const input = path.join(project, '..', 'in.jsonl')
  writeFileSync(
    input,
    cases.map(([completion]) => `${JSON.stringify({ completion, reference: answer })}\n`).join(''),
  )
  const { stdout, stderr } = rapo(project, 'grade', '--task', './verifier.ts', '--input', input)
  const verdicts = stdout
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
  assert.equal(
    verdicts.map(({ completion, correct, reason }) => [completion, correct, reason]),
    cases,
    stderr,
  )
})

test('a dry run shows prompt, completions and rewards, and writes nothing; then the project trains', () => {
  const dry = rapo(project, 'train', '--config', 'rapo.yaml', '--dry-run')
  assert.is(dry.status, 0, dry.stderr)
  assert.match(
    dry.stdout,
    /^the prompt of problem "sum-\d" as the model gets it, \d+ tokens:\n {2}[\d ]+=\d+:\n/,
  )
  assert.match(dry.stdout, /\nreward 0: equals -?\d+\n/)
  assert.match(dry.stdout, /\n {2}peak +\d/)
  assert.match(dry.stdout, /nothing was written\n$/)
  assert.match(dry.stderr, /^loading [\d.]+ MB of weights from .*countdown-base to cpu as float32 …\n/)
  assert.equal(readdirSync(project).sort(), names)
  const trained = rapo(project, 'train', '--config', 'rapo.yaml', '--run.steps', '2')
  assert.is(trained.status, 0, trained.stderr)
  assert.match(trained.stderr, /^opening runs\/rapo: reading problems\.jsonl …\n/)
  assert.match(trained.stdout, '2 steps done, in runs/rapo; to measure: npx rapo eval --model runs/rapo\n')
  assert.ok(existsSync(path.join(project, 'runs', 'rapo', 'metrics.jsonl')))
  const clash = rapo(project, 'train', '--resume', 'runs/rapo', '--dry-run')
  assert.match(clash.stderr, 'rapo: --dry-run does not go together with --resume')
})

test.run()
