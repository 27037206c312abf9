/** Run by engine-async.test.ts: exits with status 3 in the middle of a call that would take long. */
import { loadPolicy } from '../lib/model/engine.js'
import { pack, sampling } from './engine-util.js'

const policy = await loadPolicy(process.argv[2]!, { trainable: false })
const prompts = pack(Array.from({ length: 64 }, () => [1, 2, 3]))
policy.generate(
  prompts,
  { ...sampling, n: 1000, maxNewTokens: 60, stopTokenIds: [] },
  {
    onProgress: () => {
      console.log(performance.now())
      process.exit(3)
    },
  },
)
