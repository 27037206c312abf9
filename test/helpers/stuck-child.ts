/**
 * MODEL LIBRARY exit|end: a broadcast that is given up after its timeout, and whose thread stays where it is. With `end` the process
 * ends by itself.
 */
import { loadPolicy } from '../../lib/model/engine.js'
import { joinFakeNccl } from './fake-nccl.js'

const [model, library, how] = process.argv.slice(2) as [string, string, string]
const policy = await loadPolicy(model)
const group = await policy.openGroup!({ backend: 'nccl', library, timeoutSeconds: 60 })
const [rank] = await Promise.all([
  joinFakeNccl(Buffer.from(group.id), 1),
  group.join(2, { timeoutSeconds: 60 }),
])
const call = { timeoutSeconds: 0.2 }
const sending = group.broadcast({ first: 0, count: policy.tensors!.length, packedBytes: 0 }, call)
const error = await sending.catch(error => error)
console.log(`${error.code}: ${error.message}`)
// The thread is stuck, and the engine is not.
await policy.zeroGrad()
group.close()
if (how === 'exit') process.exit(0)
await policy.dispose()
rank.leave()
