/** Adapters as a way of syncing, against fakes of vLLM and SGLang. Of the fake policy an adapter is a whole model. */
import { existsSync, readdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { packTokens } from '../../lib/model/batch.js'
import type { Policy } from '../../lib/model/policy.js'
import type { ServerEngineOptions } from '../../lib/rollout/servers/engine.js'
import { adapterWeights } from '../../lib/rollout/servers/weights.js'
import type { FakeServer, Faults } from '../helpers/fake-servers.js'
import {
  checkSampled,
  failureOf,
  kinds,
  model,
  prompts,
  type Stage,
  sampling,
  stage as stageOf,
  trainOnce,
} from '../helpers/server-stage.js'

const stage = (
  kind: (typeof kinds)[number],
  faults: readonly Faults[],
  body: (stage: Stage) => Promise<void>,
  changes: Partial<ServerEngineOptions> = {},
) => stageOf(kind, faults, body, changes, { sync: 'adapter', weightsOf })

function weightsOf(policy: Policy, syncDir: string) {
  const saveAdapter = async (dir: string) => {
    await policy.save(dir)
    writeFileSync(path.join(dir, 'adapter_config.json'), '{}')
  }
  return adapterWeights({ saveAdapter }, { syncDir, owner: 'run', modelDir: model })
}

const routes = ({ requests }: FakeServer, from = 0) =>
  requests.slice(from).map(({ route }) => route.replace(/\?.*/, ''))

for (const kind of kinds) {
  test(`${kind}: each version is an adapter of a name of its own, which requests name; old ones are unloaded`, () =>
    stage(kind, [{}, {}], async ({ servers, engine, policy, syncDir }) => {
      for (const version of [0, 1, 5]) {
        if (version > 0) await trainOnce(policy)
        await engine.syncWeights(version)
        const before = servers.map(({ requests }) => requests.length)
        await checkSampled(engine, policy)
        for (const [i, server] of servers.entries()) {
          const [name, ...others] = server.adapters()
          assert.match(name!, new RegExp(`^[0-9a-f]{8}-v${version}$`))
          assert.equal(others, [])
          // The model itself stays as it was.
          assert.is(server.weightsName(), 'default')
          const sampled = server.requests
            .slice(before[i])
            .filter(({ route }) => /completions|generate/.test(route))
          for (const { body } of sampled) assert.is(kind === 'vllm' ? body.model : body.lora_path, name)
        }
        assert.match(readdirSync(syncDir).join(), new RegExp(`^rapo-[0-9a-f]{12}-v${version}$`))
        assert.not.ok(existsSync(path.join(syncDir, readdirSync(syncDir)[0]!, 'tokenizer.json')))
      }
      for (const server of servers)
        assert.not.ok(routes(server).some(route => /^.(pause|collective_rpc|update_weights)/.test(route)))
      await engine.close()
      for (const server of servers) assert.equal(server.adapters(), [])
      assert.equal(readdirSync(syncDir), [])
    }))

  test(`${kind}: a server that cannot take adapters is not used, and the error says how to start it`, () =>
    stage(kind, [{ hasNoAdapters: true }], async ({ engine }) => {
      const failure = await failureOf(engine.syncWeights(0))
      assert.match(failure, /cannot be given adapters: start \S+( \S+)? with --enable-lora/)
      if (kind === 'vllm') assert.match(failure, 'VLLM_ALLOW_RUNTIME_LORA_UPDATING=1')
    }))

  test(`${kind}: what a server says of an adapter that it refuses`, () => {
    const onRequest = (route: string) =>
      /load_lora/.test(route)
        ? { status: 400, body: { message: 'rank 32 is above --max-lora-rank 16' } }
        : undefined
    const faults: Faults = {}
    return stage(kind, [faults], async ({ engine, policy }) => {
      await engine.syncWeights(0)
      faults.onRequest = onRequest
      await trainOnce(policy)
      assert.match(
        await failureOf(engine.syncWeights(1)),
        /answered 400: rank 32 is above --max-lora-rank 16/,
      )
    })
  })

  test(`${kind}: a server that was started again has lost its adapter: the other one samples, and it is used after the next update`, () =>
    stage(kind, [{}, {}], async ({ servers: [first, second], engine, policy }) => {
      await engine.syncWeights(0)
      first!.forgetAdapters()
      const before = second!.requests.length
      await checkSampled(engine, policy)
      assert.equal(first!.adapters(), [])
      const work = routes(second!, before).filter(route => /completions|generate/.test(route))
      assert.is(work.length, 3)
      await trainOnce(policy)
      await engine.syncWeights(1)
      assert.equal(first!.adapters(), second!.adapters())
    }))

  test(`${kind}: another error of a request that names an adapter is the request's`, () => {
    const faults: Faults = {}
    return stage(kind, [faults], async ({ engine }) => {
      await engine.syncWeights(0)
      faults.onRequest = route =>
        /completions|generate/.test(route) ? { status: 400, body: { message: 'no such token' } } : undefined
      assert.match(await failureOf(engine.generate(prompts, sampling)), /answered 400: no such token/)
    })
  })

  test(`${kind}: with updates in flight requests go on with the adapter that they began with, which stays until they end`, () => {
    const gate = { open: () => {} }
    const opened = new Promise<undefined>(resolve => (gate.open = () => resolve(undefined)))
    let isGated = false
    const onRequest = (route: string) => (isGated && /completions|generate/.test(route) ? opened : undefined)
    return stage(
      kind,
      [{ onRequest }],
      async ({ servers: [server], engine, policy, syncDir }) => {
        await engine.syncWeights(0)
        isGated = true
        const early = engine.generate(prompts, sampling)
        while (server!.running() < 3) await new Promise(resolve => setImmediate(resolve))
        isGated = false
        await trainOnce(policy)
        await engine.syncWeights(1)
        assert.is(server!.adapters().length, 2)
        assert.is(readdirSync(syncDir).length, 2)
        const late = await engine.generate(packTokens([[5]]), { ...sampling, n: 1 })
        assert.equal([...late.versions], [1])
        gate.open()
        const sampled = await early
        assert.equal([...sampled.versions], new Array(12).fill(0))
        assert.ok(sampled.tokenVersions!.every(versions => versions === undefined))
        await trainOnce(policy)
        await engine.syncWeights(2)
        assert.match(server!.adapters().join(), /^[0-9a-f]{8}-v2$/)
        assert.is(readdirSync(syncDir).length, 1)
        await checkSampled(engine, policy)
      },
      { isOverlapped: true, isInFlight: true, maxInFlight: 4 },
    )
  })
}

test.run()
