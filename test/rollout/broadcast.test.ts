/**
 * Weights by broadcasts from the engine: to fakes of vLLM through a libnccl that sends over sockets, to fakes of SGLang through
 * torch's own Gloo in Python. What the servers' workers receive is what Policy.save writes.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { grpo } from '../../lib/loss/objective.js'
import { loadPolicy } from '../../lib/model/engine.js'
import type { Policy } from '../../lib/model/policy.js'
import { type BroadcastOptions, broadcastWeights } from '../../lib/rollout/servers/broadcast.js'
import type { ServerEngineOptions } from '../../lib/rollout/servers/engine.js'
import type { InferenceServer } from '../../lib/rollout/servers/server.js'
import { readSafetensors } from '../helpers/engine-util.js'
import { fakeNcclLibrary } from '../helpers/fake-nccl.js'
import { makeTempDir } from '../helpers/fake-policy.js'
import type { FakeServer, Faults } from '../helpers/fake-servers.js'
import { failureOf, type kinds, type Stage, stage, trainOnce } from '../helpers/server-stage.js'
import { makeTinyModel } from '../helpers/tiny-model.js'
import { torchPython } from '../helpers/torch-receiver.js'

const model = await makeTinyModel()
const library = fakeNcclLibrary()
const { problem } = torchPython()
if (problem) console.log(`SKIPPED the groups of SGLang: ${problem}`)

/** Bytes of a packed broadcast, so few that an update has several. */
const PACKED = 2000

type Kind = (typeof kinds)[number]

interface Way extends BroadcastOptions {
  readonly kind: Kind
}

const ways: readonly Way[] = [
  { kind: 'vllm', backend: 'nccl', library },
  { kind: 'sglang', backend: 'nccl', library },
  { kind: 'sglang', backend: 'gloo' },
]
const nccl = ways[0]!

const changes: Partial<ServerEngineOptions> = { timeoutSeconds: 600 }

/** Several packs of vLLM's, and several requests of SGLang's. */
function small(server: InferenceServer): InferenceServer {
  const { receiver } = server
  const isPacked = receiver!.packedBytes > 0
  return {
    ...server,
    receiver: { ...receiver!, ...(isPacked ? { packedBytes: PACKED } : { requestBytes: PACKED }) },
  }
}

const staged = (
  { kind, backend, library: file }: Way,
  faults: readonly Faults[],
  body: (stage: Stage) => Promise<void>,
  more: Partial<ServerEngineOptions> = {},
) =>
  stage(
    kind,
    faults,
    body,
    { ...changes, ...more },
    {
      ...{ sync: backend, model, loadPolicy, wrap: small },
      weightsOf: policy => broadcastWeights(policy, { backend, library: file }),
    },
  )

/** The weights without a rollout engine: give returns why a server did not get them, or nothing. */
const given = (
  way: Way,
  faults: readonly Faults[],
  body: (stage: Stage & { give: (timeoutSeconds: number) => Promise<string> }) => Promise<void>,
) => {
  const connected: InferenceServer[] = []
  const wrap = (server: InferenceServer) => {
    connected.push(small(server))
    return server
  }
  const { kind, backend, library: file } = way
  const run = async (staged: Stage) => {
    const weights = broadcastWeights(staged.policy, { backend, library: file })
    let version = 0
    const give = async (timeoutSeconds: number) => {
      version++
      const update = { version, name: `run-v${version}` }
      const results = await weights.give(connected, update, { timeoutSeconds, isInFlight: false })
      const refused = results.find(result => result.status === 'rejected')
      return refused ? String(refused.reason.message) : ''
    }
    await body({ ...staged, give })
    await weights.close()
  }
  return stage(kind, faults, run, {}, { sync: backend, model, loadPolicy, wrap })
}

/** The failure of `attempt` in the phase that its text names. A slow machine needs longer timeouts to get there. */
async function timedOut(
  phase: RegExp,
  attempt: (timeoutSeconds: number) => Promise<string>,
): Promise<string> {
  for (let timeoutSeconds = 2; ; timeoutSeconds *= 2) {
    const failure = await attempt(timeoutSeconds)
    if (phase.test(failure)) return failure
  }
}

const train = (policy: Policy) => trainOnce(policy, grpo({ penalty: 'none', klCoef: 0 }), 0.01)

/** That a server has what save writes now. */
async function checkWeights(server: FakeServer, policy: Policy): Promise<void> {
  const dir = makeTempDir()
  await policy.save(dir)
  const [own, theirs] = [dir, server.weightsDir()].map(from =>
    readSafetensors(path.join(from, 'model.safetensors')),
  )
  assert.equal([...theirs!.keys()], [...own!.keys()])
  for (const [name, { bytes }] of own!) assert.ok(bytes.equals(theirs!.get(name)!.bytes), name)
}

const joins = ({ requests }: FakeServer) =>
  requests.filter(({ route }) => /init_weight/.test(route)).map(({ body }) => body.init_info ?? body)

for (const way of ways) {
  const { kind, backend } = way
  const run = kind === 'sglang' && problem ? test.skip : test
  const what = `${kind}, ${backend}`

  run(`${what}: two servers in one group, the second update too`, () =>
    staged(way, [{ workers: 2 }, {}], async ({ servers, engine, policy, notices }) => {
      for (const version of [0, 1, 2]) {
        if (version > 0) await train(policy)
        await engine.syncWeights(version)
        for (const server of servers) {
          await checkWeights(server, policy)
          assert.match(server.weightsName(), new RegExp(`-v${version}$`))
        }
      }
      const [first, second] = servers.map(server =>
        joins(server).map(info => [info.rank_offset, info.world_size]),
      )
      assert.equal([first, second], [[[1, 4]], [[3, 4]]])
      assert.equal(notices, [])
      const sampled = await engine.generate(
        { tokenIds: Int32Array.of(5), offsets: Int32Array.of(0, 1) },
        {
          ...{ n: 2, maxNewTokens: 3, temperature: 0.7, stopTokenIds: [1], seed: 3 },
        },
      )
      assert.equal([...sampled.versions], [2, 2])
    }),
  )

  // Of SGLang over NCCL only how the workers find the group differs from the others.
  if (kind === 'sglang' && backend === 'nccl') continue

  run(
    `${what}: what a server answers while the broadcast waits ends the update at once, with its words`,
    () => {
      const faults: Faults = {}
      return staged(way, [faults], async ({ servers: [server], engine, policy }) => {
        await engine.syncWeights(0)
        await train(policy)
        faults.onRequest = route =>
          /update_weights/.test(route)
            ? { status: 500, body: { error: { message: 'CUDA out of memory' } } }
            : undefined
        const failure = await failureOf(engine.syncWeights(1))
        assert.match(failure, /^ERR_RAPO_IO: no server is left for the rollouts:\n/)
        assert.match(
          failure,
          /\/update_weights\S* answered 500: CUDA out of memory \(while receiving model\./,
        )
        assert.match(failure, `this process (rank 0), ${server!.url} (rank 1)`)
        faults.onRequest = () => undefined
        // The next update has a group of its own.
        await engine.syncWeights(2)
        await checkWeights(server!, policy)
        assert.is(joins(server!).length, 2)
      })
    },
  )

  run(`${what}: a server that dies in the middle is named, and waited for`, () => {
    const faults: Faults = {}
    return staged(way, [faults], async ({ servers: [server], engine, policy, notices }) => {
      await engine.syncWeights(0)
      await train(policy)
      let isDead = false
      faults.onBroadcast = async () => {
        if (isDead) return
        isDead = true
        await server!.kill()
        await server!.restart()
      }
      await engine.syncWeights(1)
      await checkWeights(server!, policy)
      assert.is(joins(server!).length, 2)
      assert.ok(
        notices.some(text => text.includes(server!.url)),
        notices.join(),
      )
    })
  })

  const stalls = `${what}: a server that stalls is given up after the timeout; the error names both sides and the phase`
  run(stalls, () => {
    const faults: Faults = {}
    return given(way, [faults], async ({ servers: [server], policy, give }) => {
      const failure = await timedOut(/while receiving/, async timeoutSeconds => {
        delete faults.onBroadcast
        await give(600)
        faults.onBroadcast = () => new Promise(() => {})
        return give(timeoutSeconds)
      })
      assert.match(failure, `this process (rank 0), ${server!.url} (rank 1)`)
      assert.match(failure, /(not done|no whole answer) within [\d.]+ s/)
      assert.match(failure, /while receiving model\.embed_tokens\.weight to /)
      // The engine's thread is free.
      await policy.save(makeTempDir())
    })
  })

  // A Python with torch takes seconds to begin.
  if (kind === 'sglang') continue

  run(`${what}: one server refuses, and the others are given the weights without it`, () => {
    const faults: Faults = {}
    return staged(way, [{}, faults], async ({ servers: [good, bad], engine, policy, notices }) => {
      await engine.syncWeights(0)
      await train(policy)
      faults.onRequest = route =>
        /update_weights/.test(route) ? { status: 400, body: { message: 'no such tensor' } } : undefined
      await engine.syncWeights(1)
      await checkWeights(good!, policy)
      assert.match(bad!.weightsName(), /-v0$/)
      assert.equal(
        joins(good!).map(info => info.world_size),
        [3, 2],
      )
      assert.ok(
        notices.some(text => text.includes(`${bad!.url}/update_weights`) && text.includes('no such tensor')),
      )
    })
  })

  run(`${what}: a server that was started again joins a new group`, () =>
    staged(way, [{}, {}], async ({ servers, engine, policy }) => {
      await engine.syncWeights(0)
      // As if it had been started again between two requests.
      servers[1]!.rename('default')
      await train(policy)
      await engine.syncWeights(1)
      for (const server of servers) {
        await checkWeights(server, policy)
        assert.is(joins(server).length, 2)
      }
    }),
  )
}

test('vllm: an update in flight freezes the requests, and drops the caches when the weights are there', () =>
  staged(
    nccl,
    [{}],
    async ({ servers: [server], engine, policy }) => {
      await engine.syncWeights(0)
      await train(policy)
      const before = server!.requests.length
      await engine.syncWeights(1)
      const routes = server!.requests.slice(before).map(({ route }) => route)
      const own = routes.filter(route => /pause\?|start_|update_|finish|reset|resume/.test(route))
      assert.equal(own, [
        ...['/pause?mode=keep', '/start_weight_update', '/update_weights', '/finish_weight_update'],
        ...['/reset_prefix_cache?reset_running_requests=true', '/resume'],
      ])
    },
    { isOverlapped: true, isInFlight: true },
  ))

test('vllm: every field of the requests', () =>
  staged(nccl, [{ workers: 2 }], async ({ servers: [server], engine, policy }) => {
    await engine.syncWeights(0)
    const bodyOf = (name: string) => server!.requests.find(({ route }) => route === name)!.body
    const { nccl_unique_id_b64: id, ...info } = bodyOf('/init_weight_transfer_engine').init_info
    assert.is(Buffer.from(id, 'base64').length, 128)
    assert.equal(info, {
      ...{ rank_offset: 1, world_size: 3 },
      ...{ packed: true, packed_buffer_size_bytes: PACKED, packed_num_buffers: 2 },
    })
    const { names, shapes, dtype_names: dtypes } = bodyOf('/update_weights').update_info
    assert.equal(
      names,
      policy.tensors!.map(({ name }) => name),
    )
    assert.equal(
      shapes,
      policy.tensors!.map(({ shape }) => shape),
    )
    assert.ok(dtypes!.every(dtype => dtype === 'float32'))
    // A tied head is the embeddings: the servers tie it themselves.
    assert.not.ok(names.includes('lm_head.weight'))
    assert.match(bodyOf('/finish_weight_update').weight_version, /-v0$/)
  }))

test('vllm: a server without the flag, or of an old release, is not used', async () => {
  const says = async (faults: Faults) => {
    let failure = ''
    await staged(nccl, [faults], async ({ engine }) => {
      failure = await failureOf(engine.syncWeights(0))
    })
    return failure
  }
  assert.match(
    await says({ transferBackend: null }),
    `start vllm serve with --weight-transfer-config '{"backend": "nccl"}'`,
  )
  const onRequest = (route: string) =>
    route === '/version' ? { status: 200, body: { version: '0.28.1' } } : undefined
  assert.match(await says({ onRequest }), 'it must be vLLM 0.30 or newer, not 0.28.1')
  assert.match(await says({ hasNoDevMode: true }), 'VLLM_SERVER_DEV_MODE=1')
})

test('vllm: a server that never joins is given up after the timeout', () => {
  const onRequest = (route: string) => (/init_weight/.test(route) ? ('hang' as const) : undefined)
  return given(nccl, [{ onRequest }], async ({ servers: [server], give }) => {
    const failure = await timedOut(/while joining/, give)
    assert.match(failure, /while joining the group rapo-[0-9a-f]{8}/)
    assert.match(failure, `this process (rank 0), ${server!.url} (rank 1)`)
    assert.match(failure, /within [\d.]+ s/)
  })
})

test('bfloat16, and an adapter: the merged numbers that save writes', () => {
  const options = { dtype: 'bfloat16', lora: { r: 2 } } as const
  return stage(
    'vllm',
    [{}],
    async ({ servers: [server], engine, policy }) => {
      await train(policy)
      await engine.syncWeights(0)
      await checkWeights(server!, policy)
    },
    // Both sides round to bfloat16.
    {
      ...changes,
      canary: { prompts: [[5]], temperature: 1, maxNewTokens: 4, stopTokenIds: [1], tolerance: 0.05 },
    },
    {
      ...{ sync: 'nccl', model, wrap: small },
      loadPolicy: (dir, given) =>
        loadPolicy(dir, dir === model ? { ...options, ...given } : { dtype: 'bfloat16' }),
      weightsOf: policy => broadcastWeights(policy, { backend: 'nccl', library }),
    },
  )
})

test('a call that is aborted rejects with its reason', () => {
  const faults: Faults = {}
  return staged(nccl, [faults], async ({ servers: [server], engine, policy }) => {
    await engine.syncWeights(0)
    await train(policy)
    const controller = new AbortController()
    const reason = new Error('enough')
    faults.onBroadcast = async () => {
      controller.abort(reason)
      await new Promise(() => {})
    }
    assert.is(await engine.syncWeights(1, { signal: controller.signal }).catch(error => error), reason)
    delete faults.onBroadcast
    await engine.syncWeights(1)
    await checkWeights(server!, policy)
  })
})

for (const how of ['exit', 'end'] as const) {
  test(`a process ends (${how}) while a thread is stuck in NCCL, which does not hear of an abort`, async () => {
    const child = spawn(
      process.execPath,
      [
        '--import',
        'tsx',
        fileURLToPath(new URL('../helpers/stuck-child.ts', import.meta.url)),
        model,
        library,
        how,
      ],
      { stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, RAPO_FAKE_NCCL: 'deaf' } },
    )
    let output = ''
    child.stdout.setEncoding('utf8').on('data', text => {
      output += text
    })
    const [code] = await once(child, 'close')
    assert.is(code, 0, output)
    assert.match(output, 'ERR_RAPO_DISTRIBUTED: the broadcast of model.embed_tokens.weight')
  })
}

test.run()
