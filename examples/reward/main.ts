/**
 * Your own reward functions in TypeScript: a quick one (verifier.ts), and a slow one on a pool of worker threads
 * (slow-verifier.ts). Each is used in a short training run of the small model that comes with rapo.
 *
 *     npm install && npx rapo setup && npm start
 *
 * From the command line: npx rapo train --task.verifier ./verifier.ts …
 */
import { fileURLToPath } from 'node:url'
import { parseConfig, train } from 'rapo'
import { pool } from './slow-verifier.js'

const packageFile = (name: string) => fileURLToPath(new URL(name, import.meta.resolve('rapo/package.json')))
const steps = 3

for (const program of [
  'for (;;);',
  'a = []; for (;;) a.push([a])',
  'throw null',
  'import("x")',
  'Object.create(null)',
]) {
  const { reward, reason } = await pool.run({ program, answer: { numbers: [1], target: 1 } })
  console.log(`${program}: reward ${reward}, ${reason}`)
}

for (const name of ['verifier', 'slow-verifier']) {
  const config = parseConfig({
    model: { dir: packageFile('models/countdown-base') },
    data: { train: packageFile('data/countdown/train.jsonl') },
    task: { verifier: fileURLToPath(new URL(`${name}.ts`, import.meta.url)) },
    sampling: { promptsPerStep: 8, groupSize: 8, maxNewTokens: 16 },
    optimizer: { learningRate: 1e-4 },
    run: { output: `runs/${name}`, steps },
  })
  await train(config, {
    overwrite: true,
    onStep: ({ step, rewardMean, seconds }) =>
      console.log(
        `${name} step ${step}  reward ${rewardMean.toFixed(3)}  judged in ${seconds.score.toFixed(2)} s`,
      ),
  })
}
console.log(`programs at once: ${pool.mostAtOnce}`)
