/** What each rank of test/world/world.test.ts does: world-child.ts SCENARIO TIMEOUT_SECONDS; prints its result as JSON. */
import { setTimeout as sleep } from 'node:timers/promises'
import { RapoError } from '../../lib/base/errors.js'
import { openWorld } from '../../lib/world/world.js'

const [scenario, seconds] = process.argv.slice(2)
// Rank 1 of the ranks that are to wait in vain.
if (process.env.RAPO_TEST_ABSENT && process.env.RANK === '1') process.exit(0)
const world = await openWorld({ device: 'cpu', timeoutSeconds: Number(seconds) }).catch(error => {
  console.log(JSON.stringify({ code: error.code, message: error.message }))
  process.exit(1)
})
const { rank } = world

const scenarios: Record<string, () => Promise<unknown>> = {
  async exchanges() {
    const gathered = await world.gather('lists', () =>
      Float32Array.from({ length: rank * 3 }, (_, i) => rank + i),
    )
    const nothing = await world.gather('nothing', () => undefined)
    // What cannot be sent, such as a function, is for this rank alone.
    const kept = await world.together('functions', () => () => rank)
    return { gathered: gathered.map(list => [...list]), nothing: nothing.length, kept: kept() }
  },
  /** A failure on one rank is known to all, and they go on together. */
  async fails() {
    const fault = new RapoError('ERR_RAPO_DATA', 'problem "p7" has no answer')
    const failing = () => {
      if (rank === 1) throw fault
      return rank
    }
    const error = await world.gather('step 4, rollouts', failing).catch(error => error)
    const second = await world.together('step 4, hooks', failing).catch(error => error)
    const after = await world.gather('saving', () => rank)
    return { name: error.name, code: error.code, message: error.message, second: second.message, after }
  },
  async killed() {
    await world.gather('step 1', () => rank)
    if (rank === 1) process.kill(process.pid, 'SIGKILL')
    await world.gather('step 2, rollouts', () => rank)
  },
  async stalled() {
    await world.gather('step 1', () => rank)
    if (rank === 1) await sleep(60_000)
    await world.gather('step 2, rollouts', () => rank)
  },
  async reports() {
    await world.gather('step 1', () => rank)
    if (rank === 1) {
      await world.report(new Error('the disk is full'))
      process.exit(3)
    }
    await world.gather('step 2, rollouts', () => rank)
  },
  /** process.exit in the middle of an exchange does not wait for the exchange. */
  async exits() {
    if (rank === 1) {
      await sleep(60_000)
      return
    }
    void world.gather('step 1', () => rank).catch(() => {})
    await sleep(300)
    process.exit(7)
  },
}

try {
  console.log(JSON.stringify(await scenarios[scenario!]!()))
  await world.close()
} catch (error) {
  console.log(JSON.stringify({ code: (error as RapoError).code, message: (error as Error).message }))
  // The one that failed first is seen first.
  await sleep(1_000)
  process.exit(1)
}
