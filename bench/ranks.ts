/**
 * `npm run bench:ranks`: N ranks of one run against N processes that each train alone at the same time, on this machine. The ranks
 * share a batch that is N times as large, so that every process has the same work in both. A machine whose processors slow
 * each other down slows both alike.
 *
 *   --ranks 2  --prompts 8  --group 32  --new-tokens 16  --steps 5  --rounds 3  --shard none,optimizer,gradients
 *   --model models/countdown-base  --dtype float32  --threads 1
 *
 * Efficiency is the median over rounds of a lone process's seconds a step divided by the ranks'. The first step is left out; the
 * lone processes make two further steps, so that none of them is alone while it is measured. Also prints the memory that a
 * rank took at most, and the prediction of `rapo doctor`.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { cpus, loadavg, tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { median } from '../lib/bench/batch.js'
import { planConfig } from '../lib/cli/plan.js'
import { loadConfig, parseConfig } from '../lib/config/load.js'
import { train } from '../lib/train/train.js'
import { launchRanks } from '../lib/world/launch.js'

const { values: flags } = parseArgs({
  options: {
    ranks: { type: 'string', default: '2' },
    prompts: { type: 'string', default: '8' },
    group: { type: 'string', default: '32' },
    'new-tokens': { type: 'string', default: '16' },
    steps: { type: 'string', default: '5' },
    rounds: { type: 'string', default: '3' },
    shard: { type: 'string', default: 'none,optimizer,gradients' },
    model: { type: 'string', default: 'models/countdown-base' },
    dtype: { type: 'string', default: 'float32' },
    threads: { type: 'string', default: '1' },
    worker: { type: 'string' },
  },
})
const [ranks, prompts, group, newTokens, steps, rounds, threads] = (
  ['ranks', 'prompts', 'group', 'new-tokens', 'steps', 'rounds', 'threads'] as const
).map(name => Number(flags[name])) as [number, number, number, number, number, number, number]
const root = fileURLToPath(new URL('..', import.meta.url))

if (flags.worker === undefined) await bench()
else await work(flags.worker)

/** One process, which prints the seconds of each step and at last its memory. */
async function work(file: string): Promise<void> {
  let last: number | undefined
  await train(loadConfig(file, { 'run.output': `${file}-${process.env.RAPO_BENCH_NAME}` }), {
    overwrite: true,
    onStep: () => {
      const now = performance.now()
      if (last !== undefined) console.log(JSON.stringify({ seconds: (now - last) / 1000 }))
      last = now
    },
  })
  console.log(JSON.stringify({ peak: process.resourceUsage().maxRSS * 1024 }))
}

async function bench(): Promise<void> {
  const scratch = mkdtempSync(path.join(tmpdir(), 'rapo-bench-ranks-'))
  process.on('exit', () => rmSync(scratch, { recursive: true, force: true }))
  const verifier = path.join(scratch, 'reward.mjs')
  // Rewards that differ, whatever the model writes.
  writeFileSync(verifier, 'export default completion => completion.length % 2\n')
  const write = (name: string, times: number, shard: string, more: number) => {
    const file = path.join(scratch, `${name}.json`)
    const config = {
      model: { dir: path.resolve(root, flags.model), dtype: flags.dtype },
      data: { train: path.join(root, 'data', 'countdown', 'train.jsonl') },
      task: { verifier },
      sampling: { promptsPerStep: times * prompts, groupSize: group, maxNewTokens: newTokens },
      objective: { preset: 'rapo', klCoef: 0.02 },
      optimizer: { learningRate: 0.0001 },
      distributed: { shard },
      run: { steps: steps + 1 + more, saveEvery: 1000, threads },
    }
    parseConfig(config)
    writeFileSync(file, JSON.stringify(config))
    return file
  }
  const worker = (file: string): [string, ...string[]] => {
    const own = [...process.argv.slice(2), '--worker', file]
    return [process.execPath, '--import', 'tsx', fileURLToPath(import.meta.url), ...own]
  }
  /** The seconds of a step and the largest memory of a process. */
  const start = async (file: string, processes: number, name: string) => {
    const texts: string[] = Array.from({ length: processes }, () => '')
    const command = worker(file)
    const env = { ...process.env, RAPO_BENCH_NAME: name }
    const onOutput = (rank: number, stream: string, text: string) => {
      if (stream === 'stdout') texts[rank] += text
      else process.stderr.write(text)
    }
    const code = await launchRanks({ command, processes, env, onOutput })
    if (code !== 0) throw new Error(`${name} ended with ${code}`)
    const lines = texts.map(text =>
      text
        .split('\n')
        .filter(line => line.startsWith('{'))
        .map(line => JSON.parse(line)),
    )
    const seconds = lines.flatMap(own => own.slice(0, steps).map(({ seconds }) => seconds as number))
    return {
      seconds: seconds.reduce((sum, value) => sum + value, 0) / seconds.length,
      peak: Math.max(...lines.map(own => own.at(-1).peak as number)),
    }
  }

  const load = () => loadavg()[0]!.toFixed(1)
  console.log(
    `${cpus().length} × ${cpus()[0]?.model.trim()}, ${threads} threads a process, load ${load()}; ${path.basename(flags.model)} in ${flags.dtype}, ${prompts} × ${group} completions of at most ${newTokens} tokens a process`,
  )
  for (const shard of flags.shard.split(',')) {
    const together = write(`together-${shard}`, ranks, shard, 0)
    const lone = write(`alone-${shard}`, 1, 'none', 2)
    const found: { together: number; alone: number; peak: number }[] = []
    for (let round = 0; round < rounds; round++) {
      const alone = await Promise.all(Array.from({ length: ranks }, (_, i) => start(lone, 1, `alone-${i}`)))
      const { seconds, peak } = await start(together, ranks, 'together')
      found.push({ together: seconds, peak, alone: alone.reduce((sum, own) => sum + own.seconds, 0) / ranks })
    }
    const { run } = await planConfig(loadConfig(together), { processes: ranks })
    const of = (name: 'together' | 'alone') => median(found.map(round => round[name])).toFixed(2)
    const efficiency = median(found.map(round => round.alone / round.together))
    const peak = median(found.map(round => round.peak))
    console.log(
      `${shard}: ${ranks} ranks ${of('together')} s a step, ${ranks} lone processes ${of('alone')} s: ${efficiency.toFixed(3)}; memory of a rank ${(peak / 1e9).toFixed(2)} GB, predicted ${(run.peak / 1e9).toFixed(2)} GB`,
    )
  }
  console.log(`load at the end ${load()}`)
}
