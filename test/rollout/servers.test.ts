/** Rollouts from vLLM and SGLang servers, against fakes of both: what is sent, what is refused, what is survived. */
import { existsSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { packTokens, unpackCompletions } from '../../lib/model/batch.js'
import { serverEngine } from '../../lib/rollout/servers/engine.js'
import { ServersLost } from '../../lib/rollout/servers/fleet.js'
import type { WeightSync } from '../../lib/rollout/servers/sync.js'
import { vllmServer } from '../../lib/rollout/servers/vllm.js'
import { diskWeights } from '../../lib/rollout/servers/weights.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'
import { type FakeServer, type Fault, type Faults, startFakeServer } from '../helpers/fake-servers.js'
import {
  checkSampled,
  failureOf,
  kinds,
  model,
  prompts,
  STOP,
  type Stage,
  sampling,
  stage,
  trainOnce,
} from '../helpers/server-stage.js'

const other = makeFakeModel({ [STOP]: 1, 5: 0.7 })

for (const kind of kinds) {
  test(`${kind}: completions in order, with the log-probs of the weights of each version`, () =>
    stage(kind, [{}, { reverses: true }], async ({ servers, engine, policy, syncDir }) => {
      assert.match(await failureOf(engine.generate(prompts, sampling)), 'call syncWeights first')
      for (const version of [0, 3]) {
        if (version > 0) await trainOnce(policy)
        await engine.syncWeights(version)
        await checkSampled(engine, policy)
        const { versions } = await engine.generate(prompts, sampling)
        assert.equal(versions, new Int32Array(12).fill(version))
        // Only the directory of now is left, under its last name.
        assert.is(readdirSync(syncDir).length, 1)
        assert.match(readdirSync(syncDir)[0]!, new RegExp(`^rapo-[0-9a-f]{12}-v${version}$`))
        assert.ok(existsSync(path.join(syncDir, readdirSync(syncDir)[0]!, 'tokenizer.json')))
        for (const server of servers) assert.match(server.weightsName(), new RegExp(`-v${version}$`))
      }
      const loads = () =>
        servers
          .flatMap(({ requests }) => requests)
          .filter(({ route }) => /collective_rpc|from_disk/.test(route))
      assert.is(loads().length, 4)
      await engine.syncWeights(3)
      assert.is(loads().length, 4)
      await engine.close()
      assert.equal(readdirSync(syncDir), [])
      assert.match(await failureOf(engine.generate(prompts, sampling)), 'the rollout engine was closed')
    }))
}

test('vllm: every field of a request', () =>
  stage('vllm', [{}], async ({ servers: [server], engine }) => {
    await engine.syncWeights(0)
    const before = server!.requests.length
    await engine.generate(packTokens([[5, 6]]), sampling)
    const sent = server!.requests.slice(before)
    assert.equal(
      sent.map(({ route }) => route),
      ['/v1/completions', '/weight_info'],
    )
    assert.equal(sent[0]!.body, {
      ...{ model: 'policy', prompt: [5, 6], n: 4, max_tokens: 5, min_tokens: 0 },
      ...{ temperature: 0.7, top_p: 1, top_k: 0, min_p: 0 },
      ...{ repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0 },
      ...{ stop_token_ids: [STOP], ignore_eos: true, logprobs: 0, return_token_ids: true },
    })
    assert.equal(
      server!.requests.slice(0, before).map(({ route }) => route.replace(/\?.*/, '')),
      [
        ...['/v1/models', '/is_paused', '/version', '/tokenize', '/pause', '/collective_rpc'],
        ...['/reset_prefix_cache', '/update_weight_version', '/resume', '/weight_info'],
        ...['/v1/completions', '/v1/completions'],
      ],
    )
  }))

test('sglang: every field of a request', () =>
  stage('sglang', [{}], async ({ servers: [server], engine }) => {
    await engine.syncWeights(0)
    const before = server!.requests.length
    await engine.generate(packTokens([[5, 6]]), { ...sampling, topP: 0.9, topK: 3, minP: 0.1 })
    const { route, body } = server!.requests[before]!
    assert.is(route, '/generate')
    assert.equal(body, {
      input_ids: [5, 6],
      sampling_params: {
        ...{ n: 4, max_new_tokens: 5, min_new_tokens: 0, temperature: 0.7, top_p: 0.9, top_k: 3, min_p: 0.1 },
        ...{ repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0 },
        ...{ stop_token_ids: [STOP], ignore_eos: false, no_stop_trim: true, skip_special_tokens: false },
      },
      return_logprob: true,
      logprob_start_len: -1,
    })
  }))

test('with sendSeeds the seeds of prompts are as far apart as they have samples', () =>
  stage(
    'vllm',
    [{}],
    async ({ servers: [server], engine }) => {
      await engine.syncWeights(0)
      const before = server!.requests.length
      await engine.generate(prompts, sampling)
      await engine.generate(prompts, { ...sampling, seed: [100, 200, 300] })
      const seeds = server!.requests.slice(before).map(({ body }) => body.seed)
      assert.equal(
        seeds.filter(seed => seed !== undefined).sort((a, b) => a - b),
        [7, 11, 15, 100, 200, 300],
      )
    },
    { sendSeeds: true },
  ))

test('requests go where the fewest are, and no server gets more than maxInFlight', async () => {
  let go = () => {}
  const gate = new Promise<undefined>(resolve => (go = () => resolve(undefined)))
  let isGated = false
  const onRequest = (route: string) => (isGated && route === '/v1/completions' ? gate : undefined)
  await stage('vllm', [{ onRequest }, { onRequest }], async ({ servers, engine }) => {
    await engine.syncWeights(0)
    isGated = true
    const sampled = engine.generate(packTokens([[5], [6], [7], [8], [9], [10]]), sampling)
    const running = () => servers.map(server => server.running())
    while (running().some(count => count < 2)) await new Promise(resolve => setImmediate(resolve))
    assert.equal(running(), [2, 2])
    go()
    assert.is((await sampled).finishReasons.length, 24)
  })
})

// What the canary and the checks of answers must find: each names the server.
const found: [what: string, kind: (typeof kinds)[number], faults: Faults, says: RegExp][] = [
  [
    'weights that are not updated',
    'vllm',
    { reloadsNothing: true },
    /given the weights \w+-v1, but its log-probs differ/,
  ],
  [
    'weights that are not updated',
    'sglang',
    { reloadsNothing: true },
    /given the weights \w+-v1, but its log-probs differ/,
  ],
  [
    'log-probs at temperature 1',
    'vllm',
    { isRaw: true },
    /temperature 1: start vllm serve with --logprobs-mode/,
  ],
  ['another model', 'vllm', { otherModel: other }, /its log-probs differ from the policy's by .* nats/],
  ['another tokenizer', 'vllm', { otherTokenizer: true }, /another tokenizer.* is 4 tokens there and 3 here/],
  ['another tokenizer', 'sglang', { otherTokenizer: true }, /another tokenizer/],
  [
    'a missing stop token',
    'vllm',
    { dropsStop: true },
    /which is no stop token of the run \(1\)|without a token/,
  ],
  [
    'a stop token of its own',
    'sglang',
    { ownStop: 5 },
    /at token 5, which is no stop token of the run \(1\)/,
  ],
  ['a cache that stays', 'vllm', { keepsCache: true }, /did not drop the cache/],
  ['a context that is too short', 'vllm', { maxModelLen: 7 }, /at most 7 tokens together; 8 are needed/],
  ['no development mode', 'vllm', { hasNoDevMode: true }, /VLLM_SERVER_DEV_MODE=1/],
]
for (const [what, kind, faults, says] of found) {
  test(`${kind}, ${what}: the server is not used, and where none is left the error says why`, async () => {
    await stage(kind, [faults], async ({ servers, engine, policy }) => {
      // A model that was never updated is right until the first update.
      if (faults.reloadsNothing) {
        await engine.syncWeights(0)
        await trainOnce(policy)
      }
      const failure = await failureOf(engine.syncWeights(1))
      assert.match(failure, /^ERR_RAPO_IO: no server is left for the rollouts/)
      assert.match(failure, servers[0]!.url)
      assert.match(failure, says)
    })
    await stage(kind, [faults, {}], async ({ servers, engine, policy }) => {
      if (faults.reloadsNothing) {
        await engine.syncWeights(0)
        await trainOnce(policy)
      }
      await engine.syncWeights(1)
      const before = servers[0]!.requests.length
      await checkSampled(engine, policy)
      assert.is(servers[0]!.requests.length, before)
    })
  })
}

const isWork = (route: string) => route === '/v1/completions' || route === '/generate'

/** A fault of the `first`-th to `last`-th request for completions after `arm`, counted from 1. */
function faultAt(fault: Fault, first = 1, last = first) {
  let count = Number.NEGATIVE_INFINITY
  const onRequest = (route: string) => {
    if (!isWork(route)) return undefined
    count++
    return count >= first && count <= last ? fault : undefined
  }
  const arm = () => {
    count = 0
  }
  return { onRequest, arm }
}

for (const kind of kinds) {
  for (const fault of ['reset', 'half', { status: 503, body: { detail: 'busy' } }] as const) {
    const what = typeof fault === 'string' ? fault : fault.status
    test(`${kind}, ${what}: the request is sent again, and the server, which still has its weights, is still used`, () => {
      const { onRequest, arm } = faultAt(fault, 2)
      return stage(kind, [{ onRequest }], async ({ servers: [server], engine, policy }) => {
        await engine.syncWeights(0)
        arm()
        const before = server!.requests.length
        await checkSampled(engine, policy)
        const sent = server!.requests.slice(before).map(({ route }) => route)
        assert.is(sent.filter(isWork).length, 4)
        assert.not.ok(sent.some(route => /collective_rpc|from_disk/.test(route)))
      })
    })
  }

  test(`${kind}: what is wrong with a request ends the call with the server's words, and the other requests with it`, () => {
    const { onRequest, arm } = faultAt({ status: 400, body: { error: { message: 'no such token' } } }, 2)
    return stage(kind, [{ onRequest }], async ({ servers: [server], engine }) => {
      await engine.syncWeights(0)
      arm()
      const failure = await failureOf(engine.generate(prompts, sampling))
      assert.match(failure, /^ERR_RAPO_IO: http:.* answered 400: no such token$/)
      while (server!.running() > 0) await new Promise(resolve => setImmediate(resolve))
    })
  })

  test(`${kind}: a server that hangs is given up after timeoutSeconds, and the others take over`, () => {
    const { onRequest, arm } = faultAt('hang', 1, 99)
    return stage(
      kind,
      [{ onRequest }, {}],
      async ({ engine, policy }) => {
        await engine.syncWeights(0)
        arm()
        await checkSampled(engine, policy)
      },
      { timeoutSeconds: 2 },
    )
  })

  test(`${kind}: killed in the middle of a batch, the other server samples all; it is used again after the next update`, () => {
    const killing: { server?: FakeServer } = {}
    const onRequest = (route: string) => {
      if (!isWork(route) || !killing.server) return undefined
      const { server } = killing
      delete killing.server
      return server.kill().then(() => undefined)
    }
    return stage(kind, [{ onRequest }, {}], async ({ servers: [first, second], engine, policy }) => {
      await engine.syncWeights(0)
      killing.server = first!
      await checkSampled(engine, policy)
      await first!.restart()
      assert.is(first!.weightsName(), 'default')
      await trainOnce(policy)
      await engine.syncWeights(1)
      assert.is(first!.weightsName(), second!.weightsName())
      const before = first!.requests.length
      await checkSampled(engine, policy)
      assert.ok(first!.requests.slice(before).some(({ route }) => isWork(route)))
    })
  })

  test(`${kind}: the only server, killed in the middle of a batch, is waited for and given the weights of now`, () => {
    const killing: { server?: FakeServer } = {}
    const onRequest = (route: string) => {
      if (!isWork(route) || !killing.server) return undefined
      const { server } = killing
      delete killing.server
      return server.kill().then(() => {
        server.restart()
        return undefined
      })
    }
    return stage(kind, [{ onRequest }], async ({ servers: [server], engine, policy }) => {
      await engine.syncWeights(0)
      await trainOnce(policy)
      await engine.syncWeights(1)
      killing.server = server!
      await checkSampled(engine, policy)
      assert.match(server!.weightsName(), /-v1$/)
    })
  })

  test(`${kind}: what was sampled while the version went back is sampled again`, () =>
    stage(kind, [{}, {}], async ({ servers, engine, policy }) => {
      await engine.syncWeights(0)
      const [first, second] = servers
      // As if it had been started again between two requests.
      first!.rename('default')
      const before = second!.requests.length
      await checkSampled(engine, policy)
      assert.is(second!.requests.slice(before).filter(({ route }) => isWork(route)).length, 3)
    }))

  test(`${kind}: an abort closes the connections, and rejects with its reason`, () => {
    const { onRequest, arm } = faultAt('hang', 1, 99)
    return stage(kind, [{ onRequest }], async ({ servers: [server], engine }) => {
      await engine.syncWeights(0)
      arm()
      const controller = new AbortController()
      const reason = new Error('enough')
      const sampled = engine.generate(prompts, sampling, { signal: controller.signal })
      while (server!.running() < 2) await new Promise(resolve => setImmediate(resolve))
      controller.abort(reason)
      assert.is(await sampled.catch(error => error), reason)
      while (server!.running() > 0) await new Promise(resolve => setImmediate(resolve))
    })
  })

  test(`${kind}: weights that cannot be read at the server's end are its own words`, () => {
    const onRequest = (route: string) =>
      /collective_rpc|from_disk/.test(route)
        ? { status: 400, body: { message: 'no such directory' } }
        : undefined
    return stage(kind, [{ onRequest }], async ({ engine }) => {
      assert.match(await failureOf(engine.syncWeights(0)), /answered 400: no such directory/)
    })
  })
}

test('vllm: a server that names other weights than those it was given is not used', () => {
  const onRequest = (route: string) =>
    route === '/weight_info' ? { status: 200, body: { weight_version: 'another' } } : undefined
  return stage('vllm', [{ onRequest }], async ({ engine }) => {
    const failure = await failureOf(engine.syncWeights(0))
    assert.match(failure, /was given the weights \w+-v0 but holds another/)
  })
})

test('vllm: a release without names for weights is checked by the canary after each batch', () => {
  const faults: Faults = { hasNoNames: true }
  return stage('vllm', [faults, {}], async ({ servers: [first, second], engine, policy }) => {
    await engine.syncWeights(0)
    await checkSampled(engine, policy)
    faults.otherModel = other
    const before = second!.requests.length
    await checkSampled(engine, policy)
    assert.ok(first!.requests.length > 0)
    assert.is(second!.requests.slice(before).filter(({ route }) => isWork(route)).length, 3)
  })
})

test('a server that comes after the first attempt is waited for', () => {
  let tell = () => {}
  const told = new Promise<void>(resolve => (tell = resolve))
  const come = async ({ servers: [server], engine, policy }: Stage) => {
    await server!.kill()
    const synced = engine.syncWeights(0)
    await told
    await server!.restart()
    await synced
    await checkSampled(engine, policy)
  }
  return stage('vllm', [{}], come, { onNotice: () => tell(), timeoutSeconds: 600 })
})

test('what a killed process of the run left in syncDir is removed with the first weights of the next', async () => {
  const policy = await loadFakePolicy(model)
  const options = { syncDir: makeTempDir(), owner: 'run', modelDir: model }
  const write = (weights: WeightSync, version: number) =>
    weights.give([], { version, name: `v${version}` }, { timeoutSeconds: 20, isInFlight: false })
  const killed = diskWeights(policy, options)
  await write(killed, 2)
  await write(killed, 3)
  await write(diskWeights(policy, { ...options, owner: 'another run' }), 2)
  const others = readdirSync(options.syncDir).filter(name => name.endsWith('-v2'))
  assert.is(others.length, 2)
  await write(diskWeights(policy, options), 4)
  const left = readdirSync(options.syncDir)
  assert.is(left.length, 2)
  assert.is(left.filter(name => others.includes(name)).length, 1)
  assert.is(left.filter(name => name.endsWith('-v4')).length, 1)
})

test('an address where nothing listens: the error names it and how long it was waited for', async () => {
  const gone = await startFakeServer('vllm', model)
  await gone.close()
  const url = gone.url
  const gonePolicy = await loadFakePolicy(model)
  const engine = serverEngine({
    servers: [vllmServer(url)],
    policy: gonePolicy,
    weights: diskWeights(gonePolicy, { syncDir: makeTempDir(), owner: 'run', modelDir: model }),
    canary: { prompts: [[5]], temperature: 1, maxNewTokens: 5, stopTokenIds: [STOP], tolerance: 1e-4 },
    ...{ contextNeeded: 8, timeoutSeconds: 0.2, maxInFlight: 2, sendSeeds: false, isOverlapped: false },
  })
  const failure = await failureOf(engine.syncWeights(0))
  assert.match(failure, /no server is left for the rollouts after 0.2 s of waiting:\n.*ECONNREFUSED/)
  assert.match(failure, url)
  await engine.close()
})

test('where servers cannot be checked in the middle of a batch, a batch that loses all of them fails at once', () => {
  const killing: { server?: FakeServer } = {}
  const onRequest = (route: string) => {
    if (!isWork(route) || !killing.server) return undefined
    const { server } = killing
    delete killing.server
    return server.kill().then(() => undefined)
  }
  return stage(
    'vllm',
    [{ onRequest }],
    async ({ servers: [server], engine, policy }) => {
      await engine.syncWeights(0)
      killing.server = server!
      const lost = await engine.generate(prompts, sampling).catch(error => error)
      assert.instance(lost, ServersLost)
      await server!.restart()
      await engine.syncWeights(1)
      await checkSampled(engine, policy)
    },
    { isOverlapped: true },
  )
})

for (const [kind, faults] of [
  ['vllm', { hasScaleOut: true }],
  ['vllm', {}],
  ['sglang', {}],
] as const) {
  const tells = 'hasScaleOut' in faults
  const what = `${kind}${tells ? ' that tells the weights of each token' : ''}`
  test(`${what}, update in flight: requests go on with the new weights, and new ones wait for the update`, () => {
    const gate = { open: () => {} }
    const opened = new Promise<undefined>(resolve => (gate.open = () => resolve(undefined)))
    let isGated = false
    const works = tells ? '/inference/v1/generate' : kind === 'vllm' ? '/v1/completions' : '/generate'
    // Without spans the whole answer waits; with them the part after the first token does.
    const onRequest = (route: string) => (isGated && !tells && route === works ? opened : undefined)
    const own: Faults = { ...faults, onRequest, ...(tells && { midway: () => opened }) }
    return stage(
      kind,
      [own],
      async ({ servers: [server], engine, policy }) => {
        await engine.syncWeights(0)
        const old = await loadFakePolicy(model)
        isGated = true
        const early = engine.generate(prompts, sampling)
        while (server!.running() < 3) await new Promise(resolve => setImmediate(resolve))
        isGated = false
        await trainOnce(policy)
        const before = server!.requests.length
        const syncing = engine.syncWeights(1)
        const late = engine.generate(packTokens([[5]]), { ...sampling, n: 1 })
        await syncing
        gate.open()
        const sent = server!.requests.slice(before).map(({ route }) => route)
        assert.ok(sent.includes(kind === 'vllm' ? '/pause?mode=keep' : '/pause_generation'), sent.join(' '))
        const freed = '/reset_prefix_cache?reset_running_requests=true'
        assert.ok(sent.includes(kind === 'vllm' ? freed : '/continue_generation'), sent.join(' '))
        assert.equal([...(await late).versions], [1])
        const sampled = await early
        assert.equal([...sampled.versions], new Array(12).fill(0))
        if (!tells) return assert.ok(sampled.tokenVersions!.every(versions => versions === undefined))
        assert.ok(sampled.tokenVersions!.some(versions => versions !== undefined))
        for (const [i, completion] of unpackCompletions(sampled).entries()) {
          const { tokenIds, logprobs } = completion
          const versions = sampled.tokenVersions![i] ?? [0]
          assert.equal(versions, [0, 1, 1, 1, 1].slice(0, tokenIds.length))
          const rows = { rowPositions: Int32Array.from(tokenIds, (_, t) => t), tokenIds }
          const sequences = packTokens([[0, ...tokenIds]])
          const [by0, by1] = [old, policy].map(one => one.logprobs(sequences, rows, sampling.temperature))
          const expected = [(await by0!).logprobs[0]!, ...(await by1!).logprobs.subarray(1)]
          assert.equal([...logprobs], expected)
        }
      },
      { isOverlapped: true, isInFlight: true, maxInFlight: 3 },
    )
  })
}

test('update in flight: a request that waits for room is sent when the update is done, with the new weights', () => {
  const gate = { open: () => {} }
  const opened = new Promise<undefined>(resolve => (gate.open = () => resolve(undefined)))
  let isGated = false
  const onRequest = async (route: string) => {
    if (isGated && route === '/v1/completions') return opened
    if (!isGated || route !== '/collective_rpc') return undefined
    isGated = false
    gate.open()
    while (running() > 0) await new Promise(resolve => setImmediate(resolve))
    return undefined
  }
  let running = () => 0
  return stage(
    'vllm',
    [{ onRequest }],
    async ({ servers: [server], engine, policy }) => {
      await engine.syncWeights(0)
      running = () => server!.running()
      isGated = true
      const sampled = engine.generate(prompts, sampling)
      while (running() < 2) await new Promise(resolve => setImmediate(resolve))
      await trainOnce(policy)
      await engine.syncWeights(1)
      assert.equal([...(await sampled).versions], [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    },
    { isOverlapped: true, isInFlight: true, maxInFlight: 2 },
  )
})

test('update in flight: tokens of weights that another gave are thrown away and sampled again', () => {
  const faults: Faults = { hasScaleOut: true }
  return stage(
    'vllm',
    [faults],
    async ({ servers: [server], engine, policy }) => {
      await engine.syncWeights(0)
      const right = server!.weightsName()
      let count = 0
      faults.midway = async () => {
        if (++count === 1) server!.rename('theirs')
        if (count === 3) server!.rename(right)
      }
      const sampled = await engine.generate(prompts, sampling)
      assert.equal([...sampled.versions], new Array(12).fill(0))
      assert.ok(sampled.tokenVersions!.every(versions => versions === undefined))
      assert.ok(count > 3)
      assert.is(policy.info.layers, 1)
    },
    { isOverlapped: true, isInFlight: true },
  )
})

test.run()
