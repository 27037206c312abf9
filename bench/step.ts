/**
 * `npm run bench:step`: a whole step of GRPO (rollouts, reward, gradients with k3 against the reference, AdamW) in rapo and in
 * TRL's GRPOTrainer, on a real Qwen2.5 with the same problems through its chat template. The two run in turns, each run in a
 * process of its own, whose first step is left out.
 *
 *   --prompts 4  --group 8  --new-tokens 64  --dtype bfloat16  --rank 0  --steps 2  --rounds 2  --threads 0
 *   --peer-settings bfloat16:8,bfloat16:32,float32:8   TRL's dtype and micro-batch: one step of each is timed, and the fastest
 *                                                      one is compared with
 *
 * --rank R trains an adapter of rank R in both. A ratio is the median over rounds of TRL's seconds divided by rapo's.
 * test/qwen/model.ts says where the model comes from, scripts/peers which TRL is installed where.
 */
import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, cpus, loadavg, tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { median } from '../lib/bench/batch.js'
import { parseConfig } from '../lib/config/load.js'
import { train } from '../lib/train/train.js'
import { peersPython } from '../scripts/peers/environment.js'
import { findModel, problems, root } from '../test/qwen/model.js'

/** One step: seconds, generated tokens, and the peak of the resident memory so far, in bytes. */
interface Step {
  rollout: number
  train: number
  tokens: number
  peak: number
}

const { values: flags } = parseArgs({
  options: {
    prompts: { type: 'string', default: '4' },
    group: { type: 'string', default: '8' },
    'new-tokens': { type: 'string', default: '64' },
    dtype: { type: 'string', default: 'bfloat16' },
    rank: { type: 'string', default: '0' },
    steps: { type: 'string', default: '2' },
    rounds: { type: 'string', default: '2' },
    threads: { type: 'string', default: '0' },
    'peer-settings': { type: 'string', default: 'bfloat16:8,bfloat16:32,float32:8' },
    worker: { type: 'string' },
  },
})
const [prompts, group, newTokens, rank, steps, rounds] = (
  ['prompts', 'group', 'new-tokens', 'rank', 'steps', 'rounds'] as const
).map(name => Number(flags[name])) as [number, number, number, number, number, number]
const threads = Number(flags.threads) || availableParallelism()
const klCoef = 0.04

if (flags.worker === undefined) await bench()
else await work(flags.worker, JSON.parse(readFileSync(path.join(flags.worker, 'settings.json'), 'utf8')))

interface Settings {
  model: string
  steps: number
}

/** rapo's side, in a process of its own. */
async function work(dir: string, { model, steps }: Settings): Promise<void> {
  const [data, verifier] = [path.join(dir, 'train.jsonl'), path.join(dir, 'reward.mjs')]
  writeFileSync(data, problems.map(problem => `${JSON.stringify(problem)}\n`).join(''))
  // As in trl_step.py: half of the completions get 1.
  writeFileSync(verifier, 'export default completion => completion.length % 2\n')
  const config = parseConfig({
    model: { dir: model, dtype: flags.dtype },
    ...(rank > 0 && { lora: { r: rank, loraAlpha: 2 * rank } }),
    data: { train: data, template: 'chat' },
    task: { verifier },
    sampling: { promptsPerStep: prompts, groupSize: group, maxNewTokens: newTokens, temperature: 1 },
    objective: { preset: 'grpo', penalty: 'reverse-k3', klCoef },
    run: { output: path.join(dir, 'run'), steps, saveEvery: steps + 1, threads, seed: 1 },
  })
  console.log(JSON.stringify({ version: 'rapo' }))
  await train(config, {
    onStep: ({ seconds, completionLengthMean }) => {
      const step: Step = {
        rollout: seconds.rollout,
        train: seconds.train + seconds.score,
        tokens: completionLengthMean * prompts * group,
        peak: process.resourceUsage().maxRSS * 1024,
      }
      console.log(JSON.stringify(step))
    },
  })
}

async function bench(): Promise<void> {
  const model = findModel()
  const { python } = await peersPython()
  const scratch = mkdtempSync(path.join(tmpdir(), 'rapo-bench-step-'))
  process.on('exit', () => rmSync(scratch, { recursive: true, force: true }))
  let runs = 0
  const run = async (command: string, args: (dir: string) => string[], settings: object) => {
    const dir = mkdtempSync(path.join(scratch, `${runs++}-`))
    const own = { ...{ model, prompts, group, newTokens, rank, threads, klCoef, output: dir }, ...settings }
    writeFileSync(
      path.join(dir, 'settings.json'),
      JSON.stringify({ ...own, problems: problems.map(({ prompt }) => prompt) }),
    )
    const lines = await output(command, args(dir))
    rmSync(dir, { recursive: true })
    return { version: lines[0].version as string, steps: lines.slice(1) as Step[] }
  }
  const own = (steps: number) =>
    run(process.execPath, dir => ['--import', 'tsx', ...process.argv.slice(1), '--worker', dir], { steps })
  const peer = (setting: string, steps: number) => {
    const [dtype, microBatch] = setting.split(':')
    const args = (dir: string) => [path.join(root, 'bench', 'trl_step.py'), path.join(dir, 'settings.json')]
    return run(python, args, { dtype, microBatch: Number(microBatch), steps })
  }

  console.log(
    `${cpus().length} × ${cpus()[0]?.model.trim()}, ${threads} threads, load ${loadavg()[0]!.toFixed(1)}; ${path.basename(model)}, rapo in ${flags.dtype}, ${rank > 0 ? `adapter of rank ${rank}` : 'all weights'}, ${prompts} × ${group} completions of ${newTokens} tokens`,
  )
  const settings = flags['peer-settings'].split(',')
  const tried: { setting: string; seconds: number }[] = []
  for (const setting of settings.length > 1 ? settings : []) {
    const seconds = secondsOf((await peer(setting, 1)).steps.at(-1)!)
    console.log(`TRL with ${setting}: ${seconds.toFixed(1)} s for the first step`)
    tried.push({ setting, seconds })
  }
  const best = tried.sort((a, b) => a.seconds - b.seconds)[0]?.setting ?? settings[0]!
  const found: { rapo: Step[]; trl: Step[] }[] = []
  let version = ''
  for (let round = 0; round < rounds; round++) {
    const trl = await peer(best, steps + 1)
    version = trl.version
    found.push({ rapo: (await own(steps + 1)).steps.slice(1), trl: trl.steps.slice(1) })
  }
  console.log(`${version}: ${best} (dtype and micro-batch); medians of ${rounds} × ${steps} steps`)
  console.log(`${'seconds'.padEnd(20)}${'TRL'.padStart(9)}${'rapo'.padStart(9)}${'ratio'.padStart(9)}`)
  for (const [label, of, digits] of [
    ['rollouts', (step: Step) => step.rollout, 1],
    ['training', (step: Step) => step.train, 1],
    ['a step', secondsOf, 1],
    ['peak memory, GB', (step: Step) => step.peak / 1e9, 2],
    ['tokens sampled', (step: Step) => step.tokens, 0],
  ] as const) {
    const ofRound = (side: 'rapo' | 'trl') => found.map(round => median(round[side].map(of)))
    const [trl, rapo] = [ofRound('trl'), ofRound('rapo')]
    const columns = [median(trl), median(rapo)].map(value => value.toFixed(digits))
    columns.push(median(trl.map((value, i) => value / rapo[i]!)).toFixed(2))
    console.log(label.padEnd(20) + columns.map(text => text.padStart(9)).join(''))
  }
  console.log(`load at the end ${loadavg()[0]!.toFixed(1)}`)
}

function secondsOf(step: Step): number {
  return step.rollout + step.train
}

/** The JSON lines that a program prints. Throws with the end of what it says on stderr if it fails. */
async function output(command: string, args: readonly string[]) {
  const child = spawn(command, args, { cwd: root })
  let complaints = ''
  child.stderr.on('data', text => {
    complaints = (complaints + text).slice(-4000)
  })
  const ended = new Promise<number | null>(resolve => child.on('close', resolve))
  const lines = []
  for await (const line of createInterface({ input: child.stdout }))
    if (line.startsWith('{')) lines.push(JSON.parse(line))
  const code = await ended
  if (code !== 0) throw new Error(`${command} ${args[0]} ended with ${code}: ${complaints}`)
  return lines
}
