/** torch in a Python process of its own (torch_loss.py). */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import type { Logits } from '../lib/kernels.js'
import type { Objective } from '../lib/objective.js'
import { cacheDir } from '../lib/setup/cache.js'
import { TORCH_VERSION } from '../lib/setup/libtorch.js'
import { makeVenv } from '../lib/setup/venv.js'
import type { Batch } from './batch.js'

export interface Peer {
  /** One warm-up call: its result, or why there is none. */
  prepare(name: string): Promise<{ loss: number; grad: Logits; torch: string } | { error: string }>
  /** Milliseconds of one call. */
  time(name: string): Promise<number>
  close(): Promise<void>
}

/** What torch needs in Python, which `rapo setup` leaves out: it needs libtorch alone. */
const needs = ['typing_extensions', 'sympy', 'networkx', 'jinja2', 'fsspec', 'filelock', 'setuptools']

/**
 * A Python that imports torch: RAPO_PYTHON, python3, or the torch of `rapo setup` with what it needs beside it, which is
 * fetched once. Undefined, and the reason on the console, where there is none.
 */
export async function findPython(): Promise<string | undefined> {
  const works = (python: string) =>
    spawnSync(python, ['-c', 'import torch'], { stdio: 'ignore' }).status === 0
  const { RAPO_PYTHON } = process.env
  for (const python of RAPO_PYTHON ? [RAPO_PYTHON] : ['python3']) {
    if (works(python)) return python
  }
  const torch = join(cacheDir(), `torch-${TORCH_VERSION}`)
  const dir = join(cacheDir(), `bench-torch-${TORCH_VERSION}`)
  const python = join(dir, 'bin', 'python')
  try {
    if (RAPO_PYTHON) throw new Error(`${RAPO_PYTHON}, which RAPO_PYTHON names, does not import torch`)
    if (!works(python)) {
      const site = sitePackages(torch)
      if (!site) throw new Error('python3 has no torch, and `rapo setup` has installed none')
      rmSync(dir, { recursive: true, force: true })
      const install = await makeVenv(dir, { env: process.env, log: `${dir}.log` })
      await install('what torch needs', needs)
      writeFileSync(join(sitePackages(dir)!, 'torch.pth'), `${site}\n`)
      if (!works(python)) throw new Error(`${python} does not import torch`)
    }
    return python
  } catch (error) {
    console.log(`no peers: ${error instanceof Error ? error.message : error}`)
    return undefined
  }
}

function sitePackages(venv: string): string | undefined {
  const lib = join(venv, 'lib')
  const name = existsSync(lib) ? readdirSync(lib).find(name => name.startsWith('python')) : undefined
  return name && join(lib, name, 'site-packages')
}

export function startPeer(python: string, batch: Batch, objective: Objective, threads: number): Peer {
  const dir = mkdtempSync(join(tmpdir(), 'rapo-bench-'))
  const rows = batch.tokenIds.length
  for (const [name, array] of Object.entries(batch)) {
    if (!ArrayBuffer.isView(array)) continue
    writeFileSync(join(dir, `${name}.bin`), new Uint8Array(array.buffer, array.byteOffset, array.byteLength))
  }
  const { vocabSize, dtype } = batch
  writeFileSync(join(dir, 'batch.json'), JSON.stringify({ rows, vocabSize, dtype, threads, objective }))
  const script = fileURLToPath(new URL('torch_loss.py', import.meta.url))
  // torch's warnings (quiet logs aside) would stand between the lines of the table.
  const child = spawn(python, ['-W', 'ignore', script, dir], { stdio: ['pipe', 'pipe', 'inherit'] })
  const lines = createInterface({ input: child.stdout })
  const died = once(child, 'exit').then(([code]) => {
    throw new Error(`${script} ended with code ${code}`)
  })
  died.catch(() => undefined)
  const ask = async (command: string) => {
    child.stdin.write(`${command}\n`)
    const [line] = (await Promise.race([once(lines, 'line'), died])) as [string]
    return JSON.parse(line)
  }
  return {
    async prepare(name) {
      const answer = await ask(`prepare ${name}`)
      if (answer.error) return { error: answer.error }
      const { buffer } = readFileSync(join(dir, 'grad.bin'))
      return { ...answer, grad: dtype === 'float32' ? new Float32Array(buffer) : new Uint16Array(buffer) }
    },
    async time(name) {
      return (await ask(`time ${name}`)).ms
    },
    async close() {
      child.stdin.end()
      await died.catch(() => undefined)
      rmSync(dir, { recursive: true, force: true })
    },
  }
}
