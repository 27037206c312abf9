/** A measurement that a test starts in a process of its own, to kill it: OUTPUT MODEL PROBLEMS. */
import { parseConfig } from '../lib/config/config.js'
import { evaluate } from '../lib/eval/evaluate.js'
import type { LoadPolicy } from '../lib/model/policy.js'
import { loadFakePolicy } from './fake-policy.js'

export function evalConfig(model: string, problems: string, changes: object = {}) {
  return parseConfig({
    model: { dir: model },
    task: { verifier: 'countdown' },
    data: { eval: problems },
    sampling: { maxNewTokens: 4 },
    eval: { samples: 60, samplesPerCall: 16, keepSamples: 20, bootstrap: 100, ...changes },
  })
}

const [output, model, problems] = process.argv.slice(2)
if (process.argv[1]?.endsWith('eval-child.ts')) {
  // Slow enough to be killed in the middle.
  const slow: LoadPolicy = async (dir, options) => {
    const policy = await loadFakePolicy(dir, options)
    return {
      ...policy,
      async generate(...call) {
        await new Promise(resolve => setTimeout(resolve, 20))
        return policy.generate(...call)
      },
    }
  }
  const options = { dir: model!, model: 'm', name: 'n', output: output!, loadPolicy: slow }
  await evaluate(evalConfig(model!, problems!), options)
}
