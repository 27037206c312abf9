/** Training with the engine on rollouts from a server that is given weights by broadcasts, or adapters. */
import { existsSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { loadPolicy } from '../../lib/model/engine.js'
import type { StepMetrics } from '../../lib/train/metrics.js'
import { prepareRun } from '../../lib/train/open.js'
import { train } from '../../lib/train/train.js'
import { fakeNcclLibrary } from '../helpers/fake-nccl.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'
import { type FakeServer, startFakeServer } from '../helpers/fake-servers.js'
import { makeTinyModel } from '../helpers/tiny-model.js'
import { makeConfig } from '../helpers/train-child.js'

const model = await makeTinyModel()
const library = fakeNcclLibrary()

const configOf = (output: string, { url }: FakeServer, steps: number, more: object = {}) =>
  makeConfig(output, model, {
    ...{ sampling: { promptsPerStep: 2, groupSize: 4, maxNewTokens: 4 }, optimizer: { learningRate: 0.001 } },
    ...{ run: { steps, saveEvery: 1 }, rollouts: { engine: 'vllm', urls: [url], sync: 'nccl' }, ...more },
  })

/** 'w' for weights, and '.' for requests for completions after them, as the server saw them. */
function eventsOf({ requests }: FakeServer): string[] {
  const known: Record<string, string> = { '/v1/completions': '.', '/finish_weight_update': 'w' }
  const events = requests.flatMap(({ route }) => known[route] ?? [])
  return events.filter((event, i) => event !== '.' || events[i - 1] !== '.')
}

async function withLibrary<T>(file: string | undefined, body: () => Promise<T>): Promise<T> {
  delete process.env.RAPO_NCCL_LIBRARY
  if (file !== undefined) process.env.RAPO_NCCL_LIBRARY = file
  try {
    return await body()
  } finally {
    delete process.env.RAPO_NCCL_LIBRARY
  }
}

async function failureOf(work: Promise<unknown>): Promise<string> {
  const error = await work.then(
    () => undefined,
    (error: { code?: string; message: string }) => error,
  )
  return `${error?.code}: ${error?.message}`
}

test('weights before each step, and before the first rollout of a resumed run; no file of them', () =>
  withLibrary(library, async () => {
    const server = await startFakeServer('vllm', model, {}, loadPolicy)
    try {
      const output = path.join(makeTempDir(), 'run')
      const lines: StepMetrics[] = []
      await train(configOf(output, server, 2), { onStep: line => void lines.push(line) })
      assert.equal(eventsOf(server), ['w', '.', 'w', '.'])
      assert.match(server.weightsName(), /-v1$/)
      await server.kill()
      await server.restart()
      await train(configOf(output, server, 3), { resume: true, onStep: line => void lines.push(line) })
      assert.equal(eventsOf(server), ['w', '.', 'w', '.', 'w', '.'])
      assert.match(server.weightsName(), /-v2$/)
      // Sums of float32 in another order.
      for (const { mismatchMean } of lines) assert.ok(mismatchMean! < 1e-5, `${mismatchMean}`)
      assert.not.ok(existsSync(path.join(output, 'weights')))
    } finally {
      await server.close()
    }
  }))

test('on a machine without CUDA, and where NCCL is missing, a run is refused before it begins', async () => {
  const output = path.join(makeTempDir(), 'run')
  const config = configOf(output, { url: 'http://localhost:1' } as FakeServer, 1)
  assert.match(
    await withLibrary(undefined, () => failureOf(train(config))),
    'ERR_RAPO_CONFIG: rollouts.sync is nccl; it needs model.device cuda, since NCCL sends from the memory of a GPU: use disk',
  )
  const missing = path.join(makeTempDir(), 'libnccl.so.2')
  const failure = await withLibrary(missing, () => failureOf(prepareRun(config, {})))
  assert.match(failure, `ERR_RAPO_DEVICE: NCCL cannot be loaded: ${missing}`)
  assert.not.ok(existsSync(output))
})

test('a policy of a loader of the caller’s own that cannot broadcast is refused', async () => {
  const fake = makeFakeModel()
  const config = makeConfig(path.join(makeTempDir(), 'run'), fake, {
    rollouts: { engine: 'vllm', urls: ['http://localhost:1'], sync: 'nccl' },
  })
  const failure = await failureOf(train(config, { loadPolicy: loadFakePolicy }))
  assert.match(
    failure,
    'ERR_RAPO_CONFIG: rollouts.sync is nccl; it must be disk for a policy without openGroup',
  )
})

test('what the configuration refuses of rollouts.sync', () => {
  const server = { engine: 'vllm', urls: ['http://localhost:1'] }
  const refused: [rollouts: object, says: RegExp, lora?: object][] = [
    [{ sync: 'nccl' }, /rollouts\.sync is nccl; it needs rollouts\.engine vllm or sglang/],
    [
      { ...server, sync: 'gloo' },
      /rollouts\.sync is gloo; it must be disk, nccl or adapter with rollouts\.engine vllm/,
    ],
    [{ ...server, sync: 'adapter' }, /rollouts\.sync is adapter; it needs lora\.r/],
    [{ ...server, sync: 'tcp' }, /rollouts\.sync is .?tcp.*disk.*nccl.*gloo.*adapter/],
  ]
  for (const [rollouts, says] of refused) {
    assert.throws(
      () => makeConfig('run', model, { rollouts }),
      (error: Error) => says.test(error.message),
    )
  }
  makeConfig('run', model, { rollouts: { ...server, sync: 'adapter' }, lora: { r: 2 } })
})

test('adapters: the server holds the model alone, and is given an adapter in PEFT’s files before each step', async () => {
  // A model with an adapter in place of a directory with the adapter alone.
  const load: typeof loadPolicy = (dir, options = {}) =>
    existsSync(path.join(dir, 'adapter_config.json'))
      ? loadPolicy(model, { ...options, adapterDir: dir })
      : loadPolicy(dir, options)
  const server = await startFakeServer('vllm', model, {}, load)
  try {
    const output = path.join(makeTempDir(), 'run')
    const lora = { lora: { r: 2, loraAlpha: 4 }, objective: { klCoef: 0, penalty: 'none' } }
    const rollouts = { engine: 'vllm', urls: [server.url], sync: 'adapter' }
    const lines: StepMetrics[] = []
    const config = configOf(output, server, 2, { ...lora, rollouts, optimizer: { learningRate: 0.01 } })
    await train(config, { onStep: line => void lines.push(line) })
    const loads = server.requests.filter(({ route, body }) => route.startsWith('/v1/load') && body.lora_name)
    assert.equal(
      loads.map(({ body }) => body.lora_name.replace(/.*-/, '')),
      ['v0', 'v1'],
    )
    // From the model and the adapter, where the trainer has added them up.
    for (const { mismatchMean } of lines) assert.ok(mismatchMean! < 1e-5, `${mismatchMean}`)
    assert.equal(server.adapters(), [])
    assert.is(server.weightsName(), 'default')
    assert.equal(readdirSync(path.join(output, 'weights')), [])
  } finally {
    await server.close()
  }
})

test.run()
