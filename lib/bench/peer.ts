/** torch in a Python process of its own (torch_loss.py). */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { packageRoot } from '../base/package.js'
import type { Logits } from '../loss/kernels.js'
import type { Objective } from '../loss/objective.js'
import { cacheDir } from '../setup/cache.js'
import { TORCH_VERSION } from '../setup/libtorch.js'
import { ask } from '../setup/process.js'
import type { Batch } from './batch.js'

export interface Peer {
  /** Warm-up calls: the result, or why there is none. */
  prepare(name: string): Promise<{ loss: number; grad: Logits; torch: string } | { error: string }>
  /** Milliseconds of one call. */
  time(name: string): Promise<number>
  close(): Promise<void>
}

/** A Python that imports torch, or why there is none: RAPO_PYTHON; else python3, or one that a benchmark made ready. */
export async function findPython(
  env: NodeJS.ProcessEnv = process.env,
): Promise<{ python: string } | { reasons: string[] }> {
  const own = benchPython(env)
  const candidates = env.RAPO_PYTHON ? [env.RAPO_PYTHON] : ['python3', ...(existsSync(own) ? [own] : [])]
  const reasons: string[] = []
  for (const python of candidates) {
    const { ok, problem } = await ask(python, ['-c', 'import torch'], { env })
    if (ok) return { python }
    reasons.push(`${python}: ${problem}`)
  }
  return { reasons }
}

/** Of the virtual environment that `npm run bench` makes in a clone, from the libtorch of `rapo setup`. */
export const benchPython = (env: NodeJS.ProcessEnv = process.env) =>
  join(cacheDir(env), `bench-torch-${TORCH_VERSION}`, 'bin', 'python')

export function startPeer(python: string, batch: Batch, objective: Objective, threads: number): Peer {
  const dir = mkdtempSync(join(tmpdir(), 'rapo-bench-'))
  const rows = batch.tokenIds.length
  for (const [name, array] of Object.entries(batch)) {
    if (!ArrayBuffer.isView(array)) continue
    writeFileSync(join(dir, `${name}.bin`), new Uint8Array(array.buffer, array.byteOffset, array.byteLength))
  }
  const { vocabSize, dtype } = batch
  writeFileSync(join(dir, 'batch.json'), JSON.stringify({ rows, vocabSize, dtype, threads, objective }))
  // From lib/, also where dist/ runs.
  const script = join(packageRoot, 'lib', 'bench', 'torch_loss.py')
  // torch's warnings (quiet logs aside) would stand between the lines of the table.
  const child = spawn(python, ['-W', 'ignore', script, dir], { stdio: ['pipe', 'pipe', 'inherit'] })
  const lines = createInterface({ input: child.stdout })
  const died = once(child, 'exit').then(([code]) => {
    throw new Error(`${script} ended with code ${code}`)
  })
  died.catch(() => undefined)
  const tell = async (command: string) => {
    child.stdin.write(`${command}\n`)
    const [line] = (await Promise.race([once(lines, 'line'), died])) as [string]
    return JSON.parse(line)
  }
  return {
    async prepare(name) {
      const answer = await tell(`prepare ${name}`)
      if (answer.error) return { error: answer.error }
      const { buffer } = readFileSync(join(dir, 'grad.bin'))
      return { ...answer, grad: dtype === 'float32' ? new Float32Array(buffer) : new Uint16Array(buffer) }
    },
    async time(name) {
      return (await tell(`time ${name}`)).ms
    },
    async close() {
      child.stdin.end()
      await died.catch(() => undefined)
      rmSync(dir, { recursive: true, force: true })
    },
  }
}
