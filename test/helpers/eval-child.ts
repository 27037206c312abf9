/**
 * An evaluation that a test runs in a process of its own, with arguments OUTPUT MODEL PROBLEMS [CALL]. The process kills itself
 * in the middle of generate call number CALL. If CALL is "silent", onProgress never answers.
 */
import { parseConfig } from '../../lib/config/load.js'
import { evaluate } from '../../lib/eval/evaluate.js'
import type { LoadPolicy } from '../../lib/model/policy.js'
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

const [output, model, problems, last] = process.argv.slice(2)
if (process.argv[1]?.endsWith('eval-child.ts')) {
  let calls = 0
  const mortal: LoadPolicy = async (dir, options) => {
    const policy = await loadFakePolicy(dir, options)
    return {
      ...policy,
      async generate(...call) {
        if (++calls === Number(last)) process.kill(process.pid, 'SIGKILL')
        return policy.generate(...call)
      },
    }
  }
  const silent = { onProgress: () => new Promise<void>(() => {}) }
  const options = {
    ...{ dir: model!, model: 'm', name: 'n', output: output!, loadPolicy: mortal },
    ...(last === 'silent' && silent),
  }
  await evaluate(evalConfig(model!, problems!), options)
}
