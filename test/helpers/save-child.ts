/** A rank of a run that dies while the ranks write a checkpoint: save-child.ts CONFIG OUTPUT RANK STEP. */
import { loadConfig } from '../../lib/config/load.js'
import { loadPolicy } from '../../lib/model/engine.js'
import { train } from '../../lib/train/train.js'

const [file, output, rank, step] = process.argv.slice(2)
const isMortal = process.env.RANK === rank
const config = loadConfig(file, { 'run.output': output })

await train(config, {
  async loadPolicy(dir, options) {
    const policy = await loadPolicy(dir, options)
    const saveState = policy.saveState.bind(policy)
    policy.saveState = async file => {
      await saveState(file)
      if (isMortal && file.includes(`step-${String(step).padStart(6, '0')}`))
        process.kill(process.pid, 'SIGKILL')
    }
    return policy
  },
}).catch(error => {
  console.error(error.message)
  process.exitCode = 1
})
