/** The kernels and the machine: which instruction sets there are, how much memory a call takes. */
import { execFile } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { kernelsInfo, policyLoss, setKernelThreads } from '../../lib/loss/kernels.js'
import { penalties, rapo } from '../../lib/loss/objective.js'
import { makeCase, raw } from '../helpers/kernels-cases.js'
import { x86Isas } from '../helpers/machine.js'

test('the instruction sets are those of the machine, fastest first, and each can be chosen', () => {
  const { isas } = kernelsInfo()
  if (process.platform === 'linux' && process.arch === 'x64') {
    assert.equal(isas, x86Isas())
  } else if (process.arch === 'arm64') {
    assert.equal(isas, ['neon', 'portable'])
  } else {
    assert.is(isas.at(-1), 'portable')
  }
  for (const isa of isas) {
    raw.setIsa(isa)
    assert.is(kernelsInfo().isa, isa)
  }
  assert.throws(() => raw.setIsa('mmx'), /expected one that this machine has: .*portable/)
  assert.is(kernelsInfo().isa, isas.at(-1), 'a name that is refused changes nothing')
  raw.setIsa('')
  assert.is(kernelsInfo().isa, process.env.RAPO_KERNELS_ISA || isas[0])
})

const onLinux = process.platform === 'linux' ? test : test.skip
onLinux('a call starts as many threads as it may use, and later calls use the same', () => {
  const threads = () => readdirSync('/proc/self/task').length
  const { batch } = makeCase(5001, 32, 'float32', rapo(), 5)
  const before = threads()
  for (const n of [1, 3, 3]) {
    setKernelThreads(n)
    policyLoss(batch, rapo())
    assert.is(threads() - before, n - 1)
  }
  setKernelThreads(0)
})

test('each instruction set gives the same bits for any number of threads', () => {
  for (const penalty of penalties) {
    const objective = rapo({ penalty, klCoef: penalty === 'none' ? 0 : 0.3 })
    const { batch } = makeCase(5001, 32, 'bfloat16', objective, 5)
    for (const isa of kernelsInfo().isas) {
      raw.setIsa(isa)
      setKernelThreads(1)
      const one = policyLoss(batch, objective, { perToken: true })
      setKernelThreads(5)
      assert.equal(policyLoss(batch, objective, { perToken: true }), one, `${isa} ${penalty}`)
    }
  }
  setKernelThreads(0)
  raw.setIsa('')
})

/** A call's extra memory in percent of the logits': bench/memory.ts, which resets the peak that Linux keeps. */
async function extraMemory(...args: string[]): Promise<number> {
  const script = fileURLToPath(new URL('../../bench/memory.ts', import.meta.url))
  const { stdout } = await promisify(execFile)(process.execPath, ['--import', 'tsx', script, ...args])
  return JSON.parse(stdout).percent
}

onLinux('a call takes at most 1 % of the memory of its logits on top', async () => {
  for (const args of [
    ['float32', '128', '151936', 'forward'],
    ['bfloat16', '256', '151936', 'forward-full'],
  ]) {
    const percent = await extraMemory(...args)
    assert.ok(percent <= 1, `${args.join(' ')}: ${percent} %`)
  }
})

test.run()
