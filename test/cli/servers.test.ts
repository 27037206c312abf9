/** rapo doctor, eval and generate with servers, against fakes of them. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { generateLines } from '../../lib/cli/infer.js'
import { formatPlan, isPossible, planConfig } from '../../lib/cli/plan.js'
import { parseConfig } from '../../lib/config/load.js'
import { evaluate } from '../../lib/eval/evaluate.js'
import { tinyConfig } from '../helpers/engine-util.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'
import { type FakeServer, type Faults, startFakeServer } from '../helpers/fake-servers.js'

const kinds = ['vllm', 'sglang'] as const
type Kind = (typeof kinds)[number]

/** Writes 7 (id 10), mostly, then the end (id 1). */
const model = makeFakeModel({ 1: 2, 10: 2 })
const other = makeFakeModel({ 1: 2, 10: 2.5 })
for (const dir of [model, other]) writeFileSync(path.join(dir, 'config.json'), JSON.stringify(tinyConfig))
const problems = path.join(model, 'problems.jsonl')
const answer = { numbers: [7], target: 7 }
writeFileSync(
  problems,
  ['7=7:', '7=7:7'].map((prompt, i) => `${JSON.stringify({ id: `p${i}`, prompt, answer })}\n`).join(''),
)

const configOf = (kind: Kind, servers: readonly FakeServer[], more: object = {}) =>
  parseConfig({
    ...{ model: { dir: model }, task: { verifier: 'countdown' } },
    data: { train: problems, eval: problems },
    sampling: { maxNewTokens: 4, temperature: 0.7 },
    rollouts: { engine: kind, urls: servers.map(({ url }) => url), timeoutSeconds: 5 },
    eval: { samples: 16, bootstrap: 100, temperature: 0.7 },
    ...more,
  })

async function withServers(
  kind: Kind,
  faults: readonly Faults[],
  body: (servers: FakeServer[]) => Promise<void>,
  started = model,
): Promise<void> {
  const servers = await Promise.all(faults.map(some => startFakeServer(kind, started, some)))
  try {
    await body(servers)
  } finally {
    await Promise.all(servers.map(server => server.close()))
  }
}

const options = { loadPolicy: loadFakePolicy }
const routesOf = ({ requests }: FakeServer) => requests.map(({ route }) => route)

for (const kind of kinds) {
  test(`doctor: what a right server of ${kind} is; nothing there is changed`, () =>
    withServers(kind, [{}], async servers => {
      const config = configOf(kind, servers)
      const plan = await planConfig(config, options)
      const [report] = plan.servers!
      assert.equal(report!.problems, [])
      assert.is(report!.maxModelLen, 64)
      assert.is(report!.model, 'policy')
      assert.is(report!.weights, 'default')
      assert.ok(report!.difference!.mean < 1e-6)
      assert.ok(isPossible(plan, Infinity))
      const shown = formatPlan(plan, 'c.yaml')
      assert.match(shown, `its servers\n${servers[0]!.url}\n`)
      assert.match(shown, kind === 'vllm' ? 'vLLM 0.32.0' : 'SGLang 0.5.23')
      assert.match(shown, 'log-probs: those of model.dir at the sampling temperature')
      assert.not.match(shown, 'to start it')
      const changing = routesOf(servers[0]!).filter(route => /pause\?|resume|rpc|from_disk|reset/.test(route))
      assert.equal(changing, [])
    }))
}

test('doctor: every lack of a server, each with its command', () => {
  const faults: Faults[] = [
    { hasNoDevMode: true, isRaw: true },
    { maxModelLen: 7, otherTokenizer: true },
    { otherModel: other },
    { onRequest: () => ({ status: 503, body: { detail: 'busy' } }) },
  ]
  return withServers('vllm', faults, async servers => {
    const plan = await planConfig(configOf('vllm', servers), options)
    const found = plan.servers!.map(({ problems }) => problems.join('\n'))
    assert.match(found[0]!, /VLLM_SERVER_DEV_MODE=1 in its environment/)
    assert.match(found[0]!, /temperature 1: start vllm serve with --logprobs-mode processed_logprobs/)
    assert.match(found[1]!, /at most 7 tokens together; 9 are needed/)
    assert.match(found[1]!, /another tokenizer/)
    assert.match(found[2]!, /should hold the weights of .* but its log-probs differ/)
    assert.match(found[3]!, /answered 503: busy/)
    assert.not.ok(isPossible(plan, Infinity))
    const shown = formatPlan(plan, 'c.yaml')
    const { port } = new URL(servers[0]!.url)
    assert.match(
      shown,
      `to start it: VLLM_SERVER_DEV_MODE=1 vllm serve ${model} --dtype float32 --port ${port} --max-model-len 9 --logprobs-mode processed_logprobs --generation-config vllm`,
    )
    assert.is(shown.match(/to start it/g)!.length, 4)
  })
})

test('doctor: which servers can be given weights by NCCL, and whether this machine can send them', () =>
  withServers('vllm', [{}, { transferBackend: null }], async servers => {
    const urls = servers.map(({ url }) => url)
    const config = configOf('vllm', servers, {
      rollouts: { engine: 'vllm', urls, timeoutSeconds: 5, sync: 'nccl' },
    })
    const plan = await planConfig(config, options)
    const [right, wrong] = plan.servers!
    assert.equal(right!.problems, [])
    const flag = `--weight-transfer-config '{"backend": "nccl"}'`
    assert.equal(wrong!.problems, [
      `${urls[1]} cannot be given weights by NCCL: start vllm serve with ${flag}`,
    ])
    assert.ok(wrong!.start.endsWith(flag))
    const why =
      'rollouts.sync is nccl; it needs model.device cuda, since NCCL sends from the memory of a GPU: use disk'
    assert.is(plan.cannotSend, why)
    assert.not.ok(isPossible({ ...plan, servers: [right!] }, Infinity))
    const shown = formatPlan(plan, 'c.yaml')
    assert.match(shown, 'weights: default; can be replaced (by NCCL)')
    assert.match(shown, 'weights: default; cannot be replaced (by NCCL)')
    assert.match(shown, `\n\n✗ ${why}`)
    const changing = servers
      .flatMap(routesOf)
      .filter(route => /init_|pause\?|start_|update_weights/.test(route))
    assert.equal(changing, [])
  }))

const adapterFlags = {
  vllm: '--enable-lora --max-lora-rank 16 --max-loras 2',
  sglang: '--enable-lora --max-lora-rank 12 --lora-target-modules q_proj v_proj --max-loras-per-batch 3',
}
for (const kind of kinds) {
  test(`doctor: which servers of ${kind} can be given adapters`, () =>
    withServers(kind, [{}, { hasNoAdapters: true }], async servers => {
      const urls = servers.map(({ url }) => url)
      const rollouts = { engine: kind, urls, timeoutSeconds: 5, sync: 'adapter', maxStaleness: 1 }
      const lora = { r: 12, targetModules: ['q_proj', 'v_proj'] }
      const plan = await planConfig(configOf(kind, servers, { rollouts, lora }), options)
      const [right, wrong] = plan.servers!
      assert.equal(right!.problems, [])
      assert.match(wrong!.problems.join(), 'cannot be given adapters: start')
      assert.ok(wrong!.start.endsWith(adapterFlags[kind]), wrong!.start)
      assert.is(wrong!.start.startsWith('VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 '), kind === 'vllm')
      assert.is(plan.cannotSend, undefined)
      assert.match(formatPlan(plan, 'c.yaml'), 'can be replaced (by an adapter beside them)')
      assert.equal(
        servers.map(server => server.adapters()),
        [[], []],
      )
    }))
}

test('doctor: a server that holds the weights of a run is not compared, nor one that is paused', () =>
  withServers('vllm', [{ otherModel: other }, { isPaused: true }], async servers => {
    servers[0]!.rename('12345678-v40')
    const plan = await planConfig(configOf('vllm', servers), options)
    assert.equal(
      plan.servers!.map(({ problems, difference }) => [problems, difference]),
      [
        [[], undefined],
        [[], undefined],
      ],
    )
    const shown = formatPlan(plan, 'c.yaml')
    assert.match(shown, 'not compared, since it holds the weights of a run')
    assert.match(shown, 'it is paused')
  }))

test('doctor: where the model cannot be loaded, the servers are asked all the same', () =>
  withServers('sglang', [{}], async servers => {
    const plan = await planConfig(configOf('sglang', servers), {
      loadPolicy: async () => {
        throw new Error('no engine')
      },
    })
    assert.is(plan.notCompared, 'no engine')
    assert.is(plan.servers![0]!.release, 'SGLang 0.5.23')
    assert.match(formatPlan(plan, 'c.yaml'), 'log-probs were not compared: no engine')
  }))

/** A policy that may compute, but not sample. */
const mute: typeof loadFakePolicy = async (dir, given) => {
  const policy = await loadFakePolicy(dir, given)
  return { ...policy, generate: () => assert.unreachable('the policy sampled') as never }
}

for (const kind of kinds) {
  test(`eval: servers of ${kind} sample, and one that holds the model already is not given it`, () =>
    withServers(kind, [{}, {}], async servers => {
      const output = makeTempDir()
      const result = await evaluate(configOf(kind, servers), {
        ...{ dir: model, model, name: 'm', output, loadPolicy: mute },
      })
      assert.is(result.perProblem.length, 2)
      assert.ok(result.perProblem.every(({ n }) => n === 16))
      assert.ok(result.groups.all!.passAtK[0]! > 0.1)
      for (const server of servers) {
        assert.is(server.weightsName(), 'default')
        assert.not.ok(routesOf(server).some(route => /collective_rpc|from_disk/.test(route)))
      }
      assert.not.ok(existsSync(path.join(output, 'weights')))
    }))

  test(`eval: a server of ${kind} that holds another model is given the right one`, () =>
    withServers(
      kind,
      [{}],
      async ([server]) => {
        const run = { dir: model, model, name: 'm', output: makeTempDir(), loadPolicy: mute }
        await evaluate(configOf(kind, [server!]), run)
        assert.match(server!.weightsName(), /-v0$/)
      },
      other,
    ))
}

test('eval: a server without development mode serves where it holds the model, and is refused where not', async () => {
  const run = () => ({ dir: model, model, name: 'm', output: makeTempDir(), loadPolicy: mute })
  const faults = { hasNoDevMode: true }
  await withServers('vllm', [faults], async servers => {
    assert.is((await evaluate(configOf('vllm', servers), run())).perProblem.length, 2)
  })
  const notices: string[] = []
  await withServers(
    'vllm',
    [faults],
    async servers => {
      const evaluated = evaluate(configOf('vllm', servers), {
        ...run(),
        onNotice: text => void notices.push(text),
      })
      const failure = await evaluated.catch(error => error)
      assert.match(failure.message, /should hold the weights of .* but its log-probs differ/)
    },
    other,
  )
  assert.is(notices.filter(text => text.startsWith('a server is not used: ')).length, 1)
})

test('eval: an interrupted measurement of servers does not go on without them', () =>
  withServers('vllm', [{}], async servers => {
    const output = makeTempDir()
    const run = { dir: model, model, name: 'm', output, loadPolicy: loadFakePolicy }
    const config = configOf('vllm', servers, { eval: { samples: 16, samplesPerCall: 16, bootstrap: 100 } })
    const onProgress = (done: number) => {
      if (done > 0) throw new Error('stopped')
    }
    assert.match((await evaluate(config, { ...run, onProgress }).catch(error => error)).message, 'stopped')
    const local = { ...config, rollouts: { ...config.rollouts, engine: 'local' as const, urls: [] } }
    const failure = await evaluate(local, run).catch(error => error)
    assert.match(failure.message, 'an interrupted measurement with rollouts.engine "vllm", not "local"')
    assert.is((await evaluate(config, run)).perProblem.length, 2)
  }))

/** Completions of a fake's weights, as `rapo generate` writes them. */
async function generated(kind: Kind, servers: readonly FakeServer[], changes: object = {}) {
  const dir = makeTempDir()
  const [input, output] = ['in.jsonl', 'out.jsonl'].map(name => path.join(dir, name)) as [string, string]
  writeFileSync(input, '{"prompt":"7=7:"}\n{"promptIds":[5,6]}\n')
  const sampling = { n: 3, maxNewTokens: 4, temperature: 0.7, topP: 1, topK: 0, minP: 0, seed: 1, ...changes }
  await generateLines({ model, input, output, loadPolicy: mute }, sampling, configOf(kind, servers))
  const lines = readFileSync(output, 'utf8').trim().split('\n')
  return lines.map(line => JSON.parse(line).completions as { tokenIds: number[]; logprobs: number[] }[])
}

for (const kind of kinds) {
  test(`generate: servers of ${kind} sample, with the log-probs of the model`, () =>
    withServers(kind, [{}], async servers => {
      const [first, second] = await generated(kind, servers)
      assert.is(first!.length, 3)
      const policy = await loadFakePolicy(model)
      for (const { tokenIds, logprobs } of [...first!, ...second!]) {
        const rows = {
          rowPositions: Int32Array.from(tokenIds, (_, t) => t),
          tokenIds: Int32Array.from(tokenIds),
        }
        const sequences = {
          tokenIds: Int32Array.of(0, ...tokenIds),
          offsets: Int32Array.of(0, tokenIds.length + 1),
        }
        const own = await policy.logprobs(sequences, rows, 0.7)
        assert.equal(logprobs.map(Math.fround), [...own.logprobs])
      }
    }))
}

test('generate: greedy completions are asked for once, and vLLM with a filter is refused', () =>
  withServers('vllm', [{}], async servers => {
    const before = servers[0]!.requests.length
    const [first] = await generated('vllm', servers, { temperature: 0 })
    assert.equal(first![1], first![0])
    assert.is(first!.length, 3)
    const greedy = servers[0]!.requests.slice(before).filter(({ body }) => body.temperature === 0)
    assert.equal(
      greedy.map(({ body }) => body.n),
      [1, 1],
    )
    const refused = await generated('vllm', servers, { topP: 0.9 }).catch(error => error)
    assert.match(refused.message, 'sampling.topP is 0.9; it must be 1 with rollouts.engine vllm')
  }))

test.run()
