/**
 * A child process of engine-files.test.ts under a limit on file sizes: loads the model argv[2] and tries to save it into
 * argv[3].
 */
import path from 'node:path'
import { loadPolicy } from '../../lib/model/engine.js'

const [dir, out] = process.argv.slice(2) as [string, string]
const policy = await loadPolicy(dir)
const report = (what: string) => (error: { code: string; message: string }) =>
  console.log(`${what}: ${error.code} ${error.message}`)
await policy.save(out).then(() => console.log('save worked'), report('save'))
await policy
  .saveState(path.join(out, 'state'))
  .then(() => console.log('saveState worked'), report('saveState'))
await policy.dispose()
