/**
 * Training runs that a test starts in a process of its own, in order to fill its disk or to kill it:
 *
 *     grow DIR MODEL    checkpoints of 100 KB, 200 KB, then 2 MB; prints the result of each
 *     run DIR MODEL [PLACE COUNT [CHANGES]]    40 steps in DIR, resumed if there is a checkpoint; kills itself in the middle of
 *                                    that method of the policy, or in that hook (onStep, onEvaluation), the COUNT-th time.
 *                                    CHANGES: of the configuration, as JSON
 */
import { appendFileSync, existsSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import type { Config } from '../../lib/config/config.js'
import { parseConfig } from '../../lib/config/load.js'
import type { LoadPolicy } from '../../lib/model/policy.js'
import { readLatestCheckpoint } from '../../lib/train/checkpoint.js'
import { train } from '../../lib/train/train.js'
import { loadFakePolicy } from './fake-policy.js'

/** A task that the fake model can learn: write the number 7 and stop. */
export function makeConfig(
  output: string,
  model: string,
  changes: Partial<Record<keyof Config, object>> = {},
): Config {
  const train = path.join(model, 'train.jsonl')
  if (!existsSync(train)) {
    const line = (i: number) =>
      JSON.stringify({ id: `p${i}`, prompt: `7=7:${i}`, answer: { numbers: [7], target: 7 } })
    writeFileSync(train, Array.from({ length: 10 }, (_, i) => `${line(i)}\n`).join(''))
  }
  return parseConfig({
    model: { dir: model, ...changes.model },
    data: { train, ...changes.data },
    task: { verifier: 'countdown', ...changes.task },
    sampling: { promptsPerStep: 4, groupSize: 8, maxNewTokens: 4, ...changes.sampling },
    objective: { preset: 'grpo', ...changes.objective },
    optimizer: { learningRate: 1, ...changes.optimizer },
    run: { output, steps: 40, saveEvery: 4, samplesPerStep: 2, ...changes.run },
    correction: { ...changes.correction },
    rollouts: { ...changes.rollouts },
    lora: { ...changes.lora },
    eval: { ...changes.eval },
  })
}

const [what, dir, model, place, count, changes = '{}'] = process.argv.slice(2)
if (what === 'grow') {
  let saves = 0
  const growing: LoadPolicy = async (from, options) => {
    const policy = await loadFakePolicy(from, options)
    return {
      ...policy,
      saveState: async file => appendFileSync(file, Buffer.alloc([100_000, 200_000][saves++] ?? 2_000_000)),
    }
  }
  const config = makeConfig(dir!, model!, { run: { saveEvery: 1, keepCheckpoints: 99 } })
  const message = await train(config, { loadPolicy: growing }).catch(error => (error as Error).message)
  const { stateFile, trainer } = readLatestCheckpoint(dir!)!
  const names = readdirSync(path.join(dir!, 'checkpoints')).sort()
  console.log(JSON.stringify({ message, names, step: trainer.step, state: statSync(stateFile).size }))
} else if (what === 'run') {
  const isStarted = readLatestCheckpoint(dir!) !== undefined
  let times = 0
  const dieAt = (here: string) =>
    here === place && ++times === Number(count) && process.kill(process.pid, 'SIGKILL')
  const mortal: LoadPolicy = async (from, options) => {
    const policy = await loadFakePolicy(from, options)
    return {
      ...policy,
      generate: (...call) => {
        dieAt('generate')
        return policy.generate(...call)
      },
      accumulate: (...call) => {
        dieAt('accumulate')
        return policy.accumulate(...call)
      },
      step: (...call) => {
        dieAt('step')
        return policy.step(...call)
      },
      save: async (...call) => {
        await policy.save(...call)
        dieAt('save')
      },
    }
  }
  const hooks = { onStep: () => dieAt('onStep'), onEvaluation: () => dieAt('onEvaluation') }
  const options = { resume: isStarted, overwrite: true, loadPolicy: mortal, ...hooks }
  await train(makeConfig(dir!, model!, JSON.parse(changes)), options)
}
