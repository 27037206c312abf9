/**
 * A verifier for runs of several ranks: rewards that differ, and in one rank, at one call, what RAPO_TEST_ACTION says, such
 * as "kill 1 30".
 */
import type { Verify } from '../../lib/reward/verifier.js'

const [action, rank, count] = (process.env.RAPO_TEST_ACTION ?? '').split(' ')
let calls = 0

const verify: Verify = (_completion, _answer, { tokens }) => {
  if (process.env.RANK === rank && ++calls === Number(count)) {
    if (action === 'kill') process.kill(process.pid, 'SIGKILL')
    if (action === 'terminate') process.kill(process.ppid, 'SIGTERM')
    if (action === 'leave') process.kill(process.pid, 'SIGTERM')
    if (action === 'throw') throw new Error('the judge is ill')
  }
  return (tokens! % 3) / 2
}
export default verify
