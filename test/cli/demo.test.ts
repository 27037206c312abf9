import { existsSync, readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { readLatestCheckpoint } from '../../lib/train/checkpoint.js'
import { startCli } from '../helpers/cli.js'
import { makeTempDir } from '../helpers/fake-policy.js'

const runs = ['countdown-base', 'countdown-grpo', 'countdown-rapo']

const start = (output: string, ...args: string[]) => startCli(['demo', '--output', output, ...args])

test('trains both ways, measures all three, prints the table, writes the report; --reuse keeps all that', async () => {
  const output = path.join(makeTempDir(), 'runs')
  const sizes = ['--steps', '2', '--n', '4']
  const first = await start(output, ...sizes).done
  assert.is(first.code, 0, first.stderr)
  assert.match(first.stdout, /^hard \(\d+ problems\)\npass@k +1 +2\nbase .*\nGRPO-RKL .*\nRAPO /m)
  assert.match(first.stdout, `file://${output}/report.html`)
  assert.match(first.stderr, /^RAPO: train 2\/2 steps/m)
  for (const name of ['base', 'GRPO-RKL', 'RAPO']) {
    assert.match(readFileSync(path.join(output, 'report.html'), 'utf8'), name)
  }
  const files = runs.map(run => path.join(output, run, 'eval.json'))
  const results = files.map(file => JSON.parse(readFileSync(file, 'utf8')))
  assert.equal(
    results.map(result => [result.name, result.samplesPerProblem]),
    [
      ['base', 4],
      ['GRPO-RKL', 4],
      ['RAPO', 4],
    ],
  )
  const times = files.map(file => statSync(file).mtimeMs)
  const second = await start(output, ...sizes, '--reuse').done
  assert.is(second.code, 0, second.stderr)
  assert.equal(
    files.map(file => statSync(file).mtimeMs),
    times,
  )
  assert.is(second.stdout.split('\n\n')[1], first.stdout.split('\n\n')[1])
})

test('Ctrl-C: both runs finish their step and save', async () => {
  const output = path.join(makeTempDir(), 'runs')
  const { child, done } = start(output, '--steps', '100000')
  const hasBegun = (run: string) => existsSync(path.join(output, run, 'samples.jsonl'))
  const timer = setInterval(() => {
    if (!runs.slice(1).every(hasBegun)) return
    clearInterval(timer)
    child.kill('SIGINT')
  }, 20)
  const { code, stderr } = await done
  clearInterval(timer)
  assert.is(code, 1)
  assert.match(stderr, 'stopped; what was trained is saved')
  for (const run of runs.slice(1)) assert.ok(readLatestCheckpoint(path.join(output, run))!.trainer.step >= 1)
})

test.run()
