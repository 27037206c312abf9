/** rapo train as docs/scale.md starts it with torchrun, srun and mpirun. Skipped where a launcher is missing. */
import { execFileSync, spawn } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { cli as rapo } from '../helpers/cli.js'
import { makeTempDir } from '../helpers/fake-policy.js'
import { freePort, runCommand } from '../helpers/ranks.js'
import { readLines } from '../helpers/run-files.js'
import { makeTinyModel } from '../helpers/tiny-model.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const dir = makeTempDir()
const problems = path.join(dir, 'problems.jsonl')

interface Launcher {
  readonly name: string
  /** Fails where ranks cannot be started with it. */
  readonly probe: readonly [string, ...string[]]
  /** Starts the command in two processes. */
  readonly start: (address: { MASTER_ADDR: string; MASTER_PORT: string }) => readonly string[]
}

const launchers: readonly Launcher[] = [
  {
    name: 'torchrun',
    probe: ['torchrun', '--help'],
    start: () => [
      ...['torchrun', '--no-python', '--nproc-per-node', '2', '--max-restarts', '3'],
      ...['--rdzv-backend', 'c10d', '--rdzv-endpoint', 'localhost:0', '--local-addr', '127.0.0.1'],
    ],
  },
  { name: 'srun', probe: ['srun', '--immediate=10', '-n', '2', 'true'], start: () => ['srun', '-n', '2'] },
  {
    name: 'mpirun',
    probe: ['mpirun', '--oversubscribe', '-n', '2', 'true'],
    start: ({ MASTER_ADDR, MASTER_PORT }) => [
      ...['mpirun', '--oversubscribe', '-n', '2'],
      ...['-x', `MASTER_ADDR=${MASTER_ADDR}`, '-x', `MASTER_PORT=${MASTER_PORT}`],
    ],
  },
]
/** mpirun refuses root, the user of many containers, without these. */
const env = { ...process.env, OMPI_ALLOW_RUN_AS_ROOT: '1', OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: '1' }

/** Why the launcher cannot be used; undefined where it can. */
function whyNot({ probe: [program, ...args] }: Launcher): string | undefined {
  try {
    execFileSync(program, args, { env, stdio: 'pipe' })
    return undefined
  } catch (error) {
    const { code, stderr, message } = error as NodeJS.ErrnoException & { stderr?: Buffer }
    return code === 'ENOENT' ? `there is no ${program}` : `${stderr || message}`.trim().split('\n').at(-1)
  }
}

const config = path.join(dir, 'config.json')
/** The run of two ranks that rapo's own launcher started, which all others must equal. */
let expected: Promise<Record<string, unknown>[]> | undefined
async function trainHere(): Promise<Record<string, unknown>[]> {
  const line = (i: number) => JSON.stringify({ id: `p${i}`, prompt: `7=7:${'3'.repeat(i)}`, answer: 7 })
  writeFileSync(problems, Array.from({ length: 4 }, (_, i) => `${line(i)}\n`).join(''))
  const values = {
    model: { dir: await makeTinyModel() },
    data: { train: problems },
    task: { verifier: path.join(root, 'test/helpers/ranks-verifier.ts') },
    sampling: { promptsPerStep: 4, groupSize: 4, maxNewTokens: 6 },
    objective: { preset: 'rapo' },
    run: { steps: 2, saveEvery: 2, threads: 1 },
  }
  writeFileSync(config, JSON.stringify(values))
  const output = path.join(dir, 'own')
  const { exitCode, stderr } = await runCommand([...rapo, 'train', '-c', config, '--run.output', output], 2)
  assert.is(exitCode, 0, stderr.join('\n'))
  return readLines(output, 'metrics.jsonl')
}

for (const launcher of launchers) {
  const { name, start } = launcher
  const reason = whyNot(launcher)
  if (reason !== undefined) console.log(`skipped: ${name}: ${reason}`)
  const check = reason === undefined ? test : test.skip
  check(`${name} starts two ranks, which train as those of --processes 2`, async () => {
    expected ??= trainHere()
    const metrics = await expected
    const address = { MASTER_ADDR: '127.0.0.1', MASTER_PORT: `${await freePort()}` }
    const output = path.join(dir, name)
    const [program, ...args] = [...start(address), ...rapo, 'train', '-c', config, '--run.output', output]
    const child = spawn(program!, args, { env: { ...env, ...address }, stdio: ['ignore', 'pipe', 'pipe'] })
    const texts = { stdout: '', stderr: '' }
    for (const stream of ['stdout', 'stderr'] as const) {
      child[stream].setEncoding('utf8').on('data', text => {
        texts[stream] += text
      })
    }
    const code = await new Promise(resolve => child.on('close', resolve))
    assert.is(code, 0, texts.stderr)
    assert.is(texts.stdout.match(/2 steps done/g)?.length, 1, texts.stdout)
    assert.equal(readLines(output, 'metrics.jsonl'), metrics)
  })
}

test.run()
