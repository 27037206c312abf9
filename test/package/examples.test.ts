/** Every project in examples/, on the packed and installed package. */
import { execFile, spawnSync } from 'node:child_process'
import { cpSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { packageVersion } from '../../lib/base/package.js'
import { makeTempDir } from '../helpers/fake-policy.js'
import { installPacked } from '../helpers/packed.js'

const examples = fileURLToPath(new URL('../../examples', import.meta.url))
const names = readdirSync(examples, { withFileTypes: true })
  .filter(entry => entry.isDirectory())
  .map(entry => entry.name)
const dir = makeTempDir()
const env = installPacked(dir)
for (const name of names) {
  cpSync(path.join(examples, name), path.join(dir, name), {
    recursive: true,
    filter: file => !file.includes('node_modules'),
  })
}
const tfjsFault = installTfjs()
if (tfjsFault) console.log(`skipped: examples/tfjs, whose packages did not install: ${tfjsFault}`)

/** TensorFlow.js is too big for a devDependency. Returns why it could not be installed. */
function installTfjs(): string | undefined {
  const file = path.join(dir, 'tfjs', 'package.json')
  const { rapo: _, ...dependencies } = JSON.parse(readFileSync(file, 'utf8')).dependencies
  writeFileSync(file, JSON.stringify({ private: true, type: 'module', dependencies }))
  const args = [
    'install',
    '--prefer-offline',
    '--ignore-scripts',
    '--no-audit',
    '--no-fund',
    '--fetch-retries=0',
  ]
  const { status, stderr } = spawnSync('npm', args, { cwd: path.dirname(file), encoding: 'utf8' })
  return status === 0 ? undefined : stderr.trim().split('\n')[0]
}

async function run(name: string): Promise<string> {
  const cwd = path.join(dir, name)
  const start = JSON.parse(readFileSync(path.join(examples, name, 'package.json'), 'utf8')).scripts.start
  const [command, ...args] = start.split(' ')
  const { stdout } = await promisify(execFile)(command, args, { cwd, env })
  return stdout
}

/** The numbers of the last line, "reward 0.125 → 0.730". */
function rewards(output: string): [number, number] {
  const found = /reward (\d\.\d+) → (\d\.\d+)\s*$/.exec(output)
  assert.ok(found, output)
  return [Number(found[1]), Number(found[2])]
}

test('each depends on this version of rapo', () => {
  assert.ok(names.length >= 5)
  for (const name of names) {
    const { dependencies } = JSON.parse(readFileSync(path.join(examples, name, 'package.json'), 'utf8'))
    assert.is(dependencies.rapo, `^${packageVersion}`, name)
  }
})

test('they type-check against the types in the package', () => {
  const root = path.dirname(examples)
  const compilerOptions = {
    ...JSON.parse(readFileSync(path.join(root, 'tsconfig.json'), 'utf8')).compilerOptions,
    typeRoots: [path.join(root, 'node_modules', '@types')],
  }
  const exclude = ['node_modules', '*/node_modules', ...(tfjsFault ? ['tfjs'] : [])]
  writeFileSync(
    path.join(dir, 'tsconfig.json'),
    JSON.stringify({ compilerOptions, include: ['*/*.ts'], exclude }),
  )
  const tsc = path.join(root, 'node_modules', 'typescript', 'bin', 'tsc')
  const { status, stdout } = spawnSync(process.execPath, [tsc, '-p', dir], { encoding: 'utf8' })
  assert.is(status, 0, stdout)
})

test('kernels-only: a linear policy learns from the kernels alone', async () => {
  const [first, last] = rewards(await run('kernels-only'))
  // One answer in eight is right by chance.
  assert.ok(first < 0.25 && last > 0.5, `${first} → ${last}`)
})

const tfjsTest = tfjsFault ? test.skip : test
tfjsTest('tfjs: the gradient reaches the weights of a network in TensorFlow.js', async () => {
  const [first, last] = rewards(await run('tfjs'))
  // One digit in five is right by chance.
  assert.ok(first < 0.35 && last > 0.6, `${first} → ${last}`)
})

test('environment: a policy learns over two turns', async () => {
  const [first, last] = rewards(await run('environment'))
  assert.ok(last > first, `${first} → ${last}`)
})

test('environment: the same task for rapo train, whose module is that of docs/environments.md', async () => {
  const cwd = path.join(dir, 'environment')
  const page = readFileSync(path.join(path.dirname(examples), 'docs', 'environments.md'), 'utf8')
  const code = /```ts\n(.*?)```/s.exec(page)![1]!
  assert.ok(readFileSync(path.join(cwd, 'second-answer.ts'), 'utf8').endsWith(code))
  const config = readFileSync(path.join(cwd, 'second-answer.yaml'), 'utf8')
  // Here the package lies a folder higher.
  writeFileSync(path.join(cwd, 'second-answer.yaml'), config.replaceAll('node_modules/', '../node_modules/'))
  await promisify(execFile)('rapo', ['train', '--config', 'second-answer.yaml', '--run.steps', '2'], {
    cwd,
    env,
  })
  const lines = readFileSync(path.join(cwd, 'runs', 'second-answer', 'metrics.jsonl'), 'utf8')
    .trim()
    .split('\n')
  assert.is(lines.length, 2)
  for (const { turnsMean, rewardMean } of lines.map(line => JSON.parse(line))) {
    assert.ok(turnsMean > 1 && turnsMean < 2, `${turnsMean}`)
    assert.ok(rewardMean > 0, `${rewardMean}`)
  }
})

test('reward: verifiers of one’s own, quick and on a pool of threads', async () => {
  const output = await run('reward')
  const ended = 'reward 0, ended its worker, or did not end within 2 s'
  assert.match(output, `for (;;);: ${ended}`)
  assert.match(output, `a = []; for (;;) a.push([a]): ${ended}`)
  for (const program of ['throw null', 'import("x")', 'Object.create(null)'])
    assert.match(output, `${program}: reward 0, `)
  const rewardsOf = (name: string) =>
    [...output.matchAll(new RegExp(`^${name} step (\\d)  reward (\\d\\.\\d+)`, 'gm'))].map(match =>
      Number(match[2]),
    )
  for (const name of ['verifier', 'slow-verifier']) assert.is(rewardsOf(name).length, 3, output)
  // Three or four numbers, a tenth each.
  assert.ok(
    rewardsOf('verifier').every(reward => reward > 0 && reward <= 0.4),
    output,
  )
  // As many as the base model gets right: a third (README).
  assert.ok(
    rewardsOf('slow-verifier').some(reward => reward > 0),
    output,
  )
  const most = Number(/programs at once: (\d+)/.exec(output)?.[1])
  assert.is(most, availableParallelism(), output)
})

test('workers: threads agree with the main thread to the bit, and one may be terminated', async () => {
  const output = await run('workers')
  assert.match(output, 'terminated a worker in the middle of its work: exit code 1')
  const results = [...output.matchAll(/worker \d: loss (\S+) → (\S+), the same bits/g)]
  assert.is(results.length, 3, output)
  for (const [, first, last] of results) assert.ok(Number(last) < Number(first), output)
})

test.run()
