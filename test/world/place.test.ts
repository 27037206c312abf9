/** What torchrun, srun and mpirun say of a process, and where it listens. */
import { networkInterfaces } from 'node:os'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { shareThreads } from '../../lib/world/join.js'
import { listenAt, type Place, placeFromEnv } from '../../lib/world/place.js'

const master = { MASTER_ADDR: 'head', MASTER_PORT: '29500' }
const torchrun = {
  ...{ RANK: '5', WORLD_SIZE: '8', LOCAL_RANK: '1', LOCAL_WORLD_SIZE: '4', ...master },
  ...{ TORCHELASTIC_RUN_ID: 'job', TORCHELASTIC_RESTART_COUNT: '2', TORCHELASTIC_USE_AGENT_STORE: 'True' },
}
const slurm = {
  ...{ SLURM_PROCID: '4', SLURM_NTASKS: '7', SLURM_STEP_NUM_TASKS: '7', SLURM_LOCALID: '0', ...master },
  ...{ SLURM_JOB_ID: '77', SLURM_STEP_ID: '0', SLURM_NODEID: '1' },
  ...{ SLURM_STEP_NUM_NODES: '2', SLURM_STEP_TASKS_PER_NODE: '4,3' },
}

test('torchrun', () => {
  assert.equal(placeFromEnv(torchrun), {
    ...{ rank: 5, size: 8, localRank: 1, localSize: 4, host: 'head', port: 29500 },
    ...{ isStoreOurs: false, attempt: 'job/2', restarts: 2 },
  })
})

test('srun', () => {
  assert.equal(placeFromEnv(slurm), {
    ...{ rank: 4, size: 7, localRank: 0, localSize: 3, host: 'head', port: 29500 },
    ...{ isStoreOurs: true, attempt: '77.0/0', restarts: 0 },
  })
  const many = { ...slurm, SLURM_STEP_TASKS_PER_NODE: '4(x2),3', SLURM_STEP_NUM_NODES: '3' }
  assert.is(placeFromEnv(many)!.localSize, 4)
  assert.is(placeFromEnv({ ...many, SLURM_NODEID: '2' })!.localSize, 3)
  assert.is(placeFromEnv({ ...slurm, SLURM_RESTART_COUNT: '3' })!.attempt, '77.0/3')
  // The script of a batch job has its variables too, but is one process.
  const { SLURM_STEP_NUM_TASKS: _, ...batch } = slurm
  assert.is(placeFromEnv(batch), undefined)
})

test('mpirun', () => {
  const env = {
    ...{ OMPI_COMM_WORLD_RANK: '1', OMPI_COMM_WORLD_SIZE: '2', OMPI_COMM_WORLD_LOCAL_RANK: '1' },
    ...{ OMPI_COMM_WORLD_LOCAL_SIZE: '2', ...master },
  }
  assert.equal(placeFromEnv(env), {
    ...{ rank: 1, size: 2, localRank: 1, localSize: 2, host: 'head', port: 29500 },
    ...{ isStoreOurs: true, attempt: 'run/0', restarts: 0 },
  })
})

test('no launcher, and a launcher of one process', () => {
  assert.is(placeFromEnv({}), undefined)
  assert.is(placeFromEnv({ RANK: '0' }), undefined)
  assert.is(placeFromEnv({ ...torchrun, RANK: '0', WORLD_SIZE: '1' }), undefined)
})

for (const [what, changes, message] of [
  ['a rank that is none', { RANK: 'first' }, /RANK is "first"; it must be a whole number ≥ 0/],
  ['a rank beyond the world', { RANK: '8' }, /RANK is "8"; it must be a number < WORLD_SIZE, 8/],
  ['a size that is none', { WORLD_SIZE: '-2' }, /WORLD_SIZE is "-2"; it must be a whole number ≥ 1/],
  ['no address', { MASTER_ADDR: '' }, /torchrun started 8 processes, but .* MASTER_ADDR is not set/],
  ['a port below the first', { MASTER_PORT: '0' }, /MASTER_PORT is "0"; it must be a whole number ≥ 1/],
  [
    'a port that is none',
    { MASTER_PORT: '70000' },
    /MASTER_PORT is "70000"; it must be a port, at most 65535/,
  ],
] as const) {
  test(what, () => {
    assert.throws(() => placeFromEnv({ ...torchrun, ...changes }), message)
  })
}

const place = placeFromEnv(torchrun)!
const onOneHost: Place = { ...place, localSize: 8 }

test('Gloo listens at the loopback address where all ranks are on one host', async () => {
  assert.equal(await listenAt(onOneHost, {}), { interface: '', address: '127.0.0.1' })
})

test('Gloo listens at the interface that the environment names', async () => {
  const [name] = Object.keys(networkInterfaces())
  assert.equal(await listenAt(place, { GLOO_SOCKET_IFNAME: `${name},other` }), {
    interface: name,
    address: '',
  })
  const unknown = await listenAt(place, { GLOO_SOCKET_IFNAME: 'none9' }).catch(error => error)
  assert.match(unknown.message, /GLOO_SOCKET_IFNAME is "none9"; it must be an interface of this host: /)
})

test('Gloo listens where other hosts reach it', async () => {
  const { address } = await listenAt({ ...place, host: '127.0.0.1' }, {})
  const own = Object.values(networkInterfaces()).flatMap(addresses => addresses ?? [])
  const outside = own.filter(({ internal, family }) => !internal && family === 'IPv4')
  // Of a host without a network only the loopback address is left.
  assert.ok(
    outside.length > 0 ? outside.some(({ address: other }) => other === address) : address === '127.0.0.1',
  )
  const nowhere = await listenAt({ ...place, host: 'no-such-host.invalid' }, {}).catch(error => error)
  assert.is(nowhere.code, 'ERR_RAPO_DISTRIBUTED')
  assert.match(nowhere.message, /MASTER_ADDR no-such-host\.invalid, cannot be reached/)
})

test('ranks with the same processors share them; a rank that a launcher bound has its own', () => {
  const shared = ['a 0-7', 'b 0-7', 'a 0-7', 'a 0-7']
  assert.equal(
    shared.map((_, rank) => shareThreads(shared, rank, 8)),
    [2, 8, 2, 2],
  )
  const bound = ['a 0-3', 'a 4-7']
  assert.equal(
    bound.map((_, rank) => shareThreads(bound, rank, 4)),
    [4, 4],
  )
  assert.is(shareThreads(['a 0', 'a 0'], 1, 1), 1)
})

test.run()
