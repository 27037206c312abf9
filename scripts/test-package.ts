/**
 * npm run test:package: uses the package like a user, from its tarball in an empty project and with an empty cache: set-up
 * (which compiles the engine from the package's sources for some minutes), doctor, bench, a few steps of training. If this
 * machine has a libtorch, it is used; otherwise set-up installs one. Ends with "N passed, N failed".
 */

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { packageVersion } from '../lib/base/package.js'
import { cacheDir } from '../lib/setup/cache.js'
import { findLibtorch } from '../lib/setup/libtorch.js'
import { installPacked } from '../test/helpers/packed.js'
// @ts-expect-error: no types
import { hostTarget, prebuild } from './prebuilds.mjs'

const dir = realpathSync(mkdtempSync(path.join(tmpdir(), 'rapo-project-')))
const totals = { passed: 0, failed: 0 }
try {
  await prebuild([hostTarget()])
  const { RAPO_KERNELS_ADDON: _, ...env } = installPacked(dir)
  env.RAPO_CACHE = path.join(dir, 'cache')
  env.RAPO_LIBTORCH = (await findLibtorch({ cache: cacheDir(), env: process.env })).at(-1)?.found?.dir ?? ''
  const installed = path.join(dir, 'node_modules', 'rapo')
  const rapo = (args: string, status = 0): string => {
    const command = ['--no-install', 'rapo', ...args.split(' ')]
    const result = spawnSync('npx', command, { cwd: dir, env, encoding: 'utf8' })
    const said = `${result.stdout}${result.stderr}`
    assert.equal(result.status, status, `rapo ${args}:\n${said}`)
    return said
  }

  check('help and version', () => {
    for (const name of ['setup', 'doctor', 'train', 'eval', 'bench'])
      assert.match(rapo('--help'), new RegExp(`^ +${name} `, 'm'))
    assert.equal(rapo('--version').trim(), packageVersion)
  })
  check('before set-up the doctor and train say what to do', () => {
    assert.match(rapo('doctor', 1), /Not ready; the lines with ✗ say why/)
    assert.match(rapo(train('early'), 1), /run `npx rapo setup`/)
    assert.ok(!existsSync(path.join(dir, 'early')))
  })
  check('setup compiles the engine into the cache, once', () => {
    rapo('setup')
    assert.match(rapo('setup'), /ready, against libtorch/)
  })
  check('doctor: everything is in place, and of this package', () => {
    assert.match(rapo('doctor'), /Everything is in place/)
    const report = JSON.parse(rapo('doctor --json'))
    assert.equal(report.rapo.root, installed)
    assert.ok(report.kernels.file.startsWith(path.join(installed, 'prebuilds')), report.kernels.file)
    assert.ok(report.engine.file.startsWith(env.RAPO_CACHE), report.engine.file)
    assert.equal(
      report.cuda.searched[0].library,
      path.join(path.dirname(report.kernels.file), 'librapo_cuda.so'),
    )
  })
  check('bench measures, draws and compares', () => {
    for (const name of ['a', 'b']) {
      assert.match(
        rapo(`bench --rows 8 --vocab 5000 --rounds 6 --json ${name}.json --svg ${name}.svg`),
        /float32/,
      )
    }
    assert.match(readFileSync(path.join(dir, 'a.svg'), 'utf8'), /^<svg /)
    assert.match(rapo('bench --compare a.json b.json'), /float32/)
  })
  check('train, eval, report', () => {
    assert.match(rapo(train('run')), /step/)
    assert.match(rapo('eval --model run --n 4'), /pass@k/)
    rapo('report run')
  })
} finally {
  rmSync(dir, { recursive: true, force: true })
}
console.log(`${totals.passed} passed, ${totals.failed} failed`)
process.exitCode = totals.failed ? 1 : 0

function train(output: string): string {
  const from = 'node_modules/rapo'
  const data = `--data.train ${from}/data/countdown/train.jsonl --data.eval ${from}/data/countdown/test.jsonl`
  const small = '--sampling.prompts-per-step 2 --sampling.group-size 4 --eval.samples 4 --run.steps 2'
  return `train --config ${from}/configs/countdown-rapo.yaml --model.dir ${from}/models/countdown-base ${data} ${small} --run.output ${output}`
}

function check(name: string, body: () => void): void {
  const start = performance.now()
  try {
    body()
    totals.passed += 1
    console.log(`passed: ${name} (${((performance.now() - start) / 1000).toFixed(0)} s)`)
  } catch (error) {
    totals.failed += 1
    console.log(`FAILED: ${name}: ${(error as Error).message}`)
  }
}
