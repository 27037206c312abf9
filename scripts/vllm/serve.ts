/**
 * Starts vLLM on the CPU, as rapo needs it (docs/servers.md). From the command line,
 *
 *     npx tsx scripts/vllm/serve.ts DIR PORT
 *
 * writes the bundled model, in the form that vLLM's CPU kernels take, to DIR and serves it until Ctrl-C.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, openSync, readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { vllmEnvironment } from './environment.js'
import { writePaddedModel } from './model.js'

export interface Vllm {
  readonly url: string
  /** Seconds until it answered. */
  readonly seconds: number
  readonly process: ChildProcess
  stop(): Promise<void>
}

/** Seconds until it must answer. Alone on two cores it takes some 35. */
const PATIENCE = 1200

/** @param log a file for what it prints */
export async function startVllm(
  python: string,
  model: string,
  { port, log }: { readonly port?: number; readonly log: string },
): Promise<Vllm> {
  const chosen = port ?? (await freePort())
  const begin = performance.now()
  const output = openSync(log, 'w')
  const child = spawn(
    path.join(path.dirname(python), 'vllm'),
    [
      ...['serve', model, '--host', '127.0.0.1', '--port', String(chosen), '--served-model-name', 'policy'],
      ...['--dtype', 'float32', '--logprobs-mode', 'processed_logprobs', '--generation-config', 'vllm'],
      // Compiling takes longer than a model of this size ever runs. /inference/v1/generate tells the version of each token.
      ...['--enforce-eager', '--enable-scale-out'],
    ],
    {
      stdio: ['ignore', output, output],
      env: {
        ...process.env,
        ...{ VLLM_SERVER_DEV_MODE: '1', VLLM_CPU_KVCACHE_SPACE: '1', VLLM_CPU_OMP_THREADS_BIND: 'nobind' },
        ...{ HF_HUB_OFFLINE: '1', VLLM_NO_USAGE_STATS: '1', DO_NOT_TRACK: '1' },
      },
      // A group of its own: the server has children.
      detached: true,
    },
  )
  closeSync(output)
  const ended = new Promise<void>(resolve => child.once('exit', () => resolve()))
  const signal = (name: 'SIGINT' | 'SIGKILL') => {
    try {
      process.kill(-child.pid!, name)
    } catch {} // it has ended already
  }
  const kill = () => signal('SIGKILL')
  process.once('exit', kill)
  const stop = async () => {
    signal('SIGINT')
    await Promise.race([ended, sleep(10_000, undefined, { ref: false })])
    kill()
    await ended
    process.off('exit', kill)
  }
  const url = `http://127.0.0.1:${chosen}`
  const isUp = () =>
    fetch(`${url}/health`).then(
      ({ ok }) => ok,
      () => false,
    )
  while (!(await isUp())) {
    const isOver = performance.now() - begin > PATIENCE * 1000
    if (isOver) await stop()
    if (isOver || child.exitCode !== null || child.signalCode !== null) {
      const last = readFileSync(log, 'utf8').trim().split('\n').slice(-15).join('\n')
      throw new Error(
        `vLLM did not start${isOver ? ` within ${PATIENCE} s` : ''}; the end of ${log}:\n${last}`,
      )
    }
    await sleep(500)
  }
  return { url, seconds: (performance.now() - begin) / 1000, process: child, stop }
}

/** vLLM does not tell the port that it chose, so that it is given one. */
function freePort(): Promise<number> {
  return new Promise(resolve => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number }
      server.close(() => resolve(port))
    })
  })
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [dir = 'runs/countdown-vllm-base', port = '8000'] = process.argv.slice(2)
  const { python } = await vllmEnvironment()
  writePaddedModel(dir)
  const { url, stop } = await startVllm(python, dir, { port: Number(port), log: `${dir}.log` })
  console.log(`${url} serves ${dir}; Ctrl-C ends it`)
  process.once('SIGINT', () => void stop())
  process.once('SIGTERM', () => void stop())
}
