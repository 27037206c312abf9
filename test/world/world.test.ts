/** Ranks that are processes of their own on this machine, over Gloo. What each does: test/helpers/world-child.ts. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { alone, openWorld } from '../../lib/world/world.js'
import { runCommand, runRanks } from '../helpers/ranks.js'

/** The result of each rank, whose last line is JSON. */
async function run(
  scenario: string,
  processes: number,
  seconds: number,
  patience = { ask: 200, kill: 20_000 },
) {
  const ranks = await runRanks('world-child.ts', processes, [scenario, String(seconds)], { patience })
  const results = ranks.stdout.map(text => (text ? JSON.parse(text) : undefined))
  return { ...ranks, results }
}

test('three ranks exchange what each has', async () => {
  const { results, exitCode, stderr } = await run('exchanges', 3, 60)
  assert.is(exitCode, 0, stderr.join())
  for (const [rank, { gathered, nothing, kept }] of results.entries()) {
    assert.equal(gathered, [[], [1, 2, 3], [2, 3, 4, 5, 6, 7]])
    assert.equal([nothing, kept], [3, rank])
  }
})

test('what fails on one rank is thrown on all, and they go on together', async () => {
  const { results, exitCode, stderr } = await run('fails', 2, 60)
  assert.is(exitCode, 0, stderr.join())
  const why = 'problem "p7" has no answer'
  for (const [rank, { code, message, second, after }] of results.entries()) {
    assert.is(code, 'ERR_RAPO_DATA')
    const told = rank === 1 ? why : `rank 1: ${why}`
    assert.equal([message, second], [told, told])
    assert.equal(after, [0, 1])
  }
})

test('a rank that is killed ends the others at once, with its name', async () => {
  const { results, exitCode, failure } = await run('killed', 3, 600, { ask: 60_000, kill: 60_000 })
  assert.is(exitCode, 137)
  assert.is(failure, 'rank 1 of 3 was ended by SIGKILL')
  for (const rank of [0, 2]) {
    assert.is(results[rank].code, 'ERR_RAPO_DISTRIBUTED')
    assert.match(results[rank].message, /^step 2, rollouts: .*rank 1 ended without a message: killed/)
  }
})

test('a rank that stalls is named after the timeout', async () => {
  const { results, failure } = await run('stalled', 2, 2)
  assert.is(failure, 'rank 0 of 2 ended with exit code 1')
  assert.is(results[0].code, 'ERR_RAPO_DISTRIBUTED')
  assert.match(
    results[0].message,
    /^step 2, rollouts: rank 1 did not come within 2 s \(distributed\.timeoutSeconds\)/,
  )
})

test('a rank that says why it ends is quoted by the others', async () => {
  const { results, exitCode, failure } = await run('reports', 2, 600, { ask: 60_000, kill: 60_000 })
  assert.is(exitCode, 3)
  assert.is(failure, 'rank 1 of 2 ended with exit code 3')
  assert.match(results[0].message, /^step 2, rollouts: rank 1 failed: the disk is full/)
})

test('process.exit does not wait for an exchange', async () => {
  const { exitCode, failure } = await run('exits', 2, 600)
  assert.is(exitCode, 7)
  assert.is(failure, 'rank 0 of 2 ended with exit code 7')
})

test('a rank that never comes is named', async () => {
  const env = { ...process.env, RAPO_TEST_ABSENT: '1' }
  const { results } = await runRanks('world-child.ts', 2, ['exchanges', '2'], { env }).then(({ stdout }) => ({
    results: stdout.map(text => (text ? JSON.parse(text) : undefined)),
  }))
  assert.is(results[0].code, 'ERR_RAPO_DISTRIBUTED')
  assert.is(results[0].message, 'rank 1 of 2 did not come within 2 s (distributed.timeoutSeconds)')
})

test('without a launcher there is one rank, and no store', async () => {
  const world = await openWorld({ device: 'cpu', timeoutSeconds: 1, place: undefined })
  assert.is(world, alone)
  assert.equal(await world.gather('all', () => 'one'), ['one'])
  assert.is(await world.together('all', async () => 'one'), 'one')
  const failing = await world
    .gather('all', () => {
      throw new Error('no')
    })
    .catch(error => error)
  assert.is(failing.message, 'no')
})

test('a program that cannot be started', async () => {
  const error = await runCommand(['no-such-program'], 2).catch(error => error)
  assert.is(error.code, 'ERR_RAPO_SETUP')
  assert.match(error.message, /^cannot start no-such-program: /)
})

test('a store that nobody serves', async () => {
  const place = { rank: 1, size: 2, localRank: 1, localSize: 2, host: '127.0.0.1', port: 1 }
  const rest = { isStoreOurs: true, attempt: 'run/0', restarts: 0 }
  const error = await openWorld({ device: 'cpu', timeoutSeconds: 1, place: { ...place, ...rest } }).catch(
    e => e,
  )
  assert.is(error.code, 'ERR_RAPO_DISTRIBUTED')
  assert.match(error.message, /^cannot reach the store of the run at 127\.0\.0\.1:1: /)
})

test.run()
