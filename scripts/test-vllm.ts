/**
 * npm run test:vllm: rollouts from the real vLLM, for the CPU, in an environment of its own in the user's cache (scripts/vllm/). Needs
 * the built engine, access to PyPI, 3.4 GB of disk and 4 GB of memory. Ends with "N passed, N failed", or with why it was skipped.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { reasonOf } from '../lib/base/errors.js'
import { moments } from '../lib/base/stats.js'
import { parseConfig } from '../lib/config/load.js'
import { grpo } from '../lib/loss/objective.js'
import { packTokens, unpackCompletions } from '../lib/model/batch.js'
import { loadPolicy } from '../lib/model/engine.js'
import type { PackedTokens, Policy } from '../lib/model/policy.js'
import { loadTokenizer } from '../lib/model/tokenizer.js'
import type { RolloutEngine, Sampler } from '../lib/rollout/engine.js'
import { openEngine } from '../lib/rollout/open.js'
import { connect, getJson, postJson } from '../lib/rollout/servers/http.js'
import type { StepMetrics } from '../lib/train/metrics.js'
import { train } from '../lib/train/train.js'
import { vllmEnvironment } from './vllm/environment.js'
import { bundled, writePaddedModel } from './vllm/model.js'
import { startVllm, type Vllm } from './vllm/serve.js'

/** In nats: the same float32 numbers, added up in another order, through 4 layers. */
const BOUND = 1e-5

const data = fileURLToPath(new URL('../data/countdown/train.jsonl', import.meta.url))
const dir = mkdtempSync(path.join(tmpdir(), 'rapo-vllm-'))
process.on('exit', () => rmSync(dir, { recursive: true, force: true }))
const [model, tied] = ['untied', 'tied'].map(name => path.join(dir, name)) as [string, string]
writePaddedModel(model)
writePaddedModel(tied, { tied: true })
const tokenizer = loadTokenizer(model)
const lines = readFileSync(data, 'utf8').split('\n', 8)
const texts = lines.map(line => JSON.parse(line).prompt as string)
const prompts = packTokens(texts.map(text => tokenizer.encode(text)))
const sampling = { n: 32, maxNewTokens: 16, temperature: 1, stopTokenIds: [1], seed: 7 }
const totals = { passed: 0, failed: 0 }

/** @param what returns what it saw */
async function check(name: string, what: () => Promise<string>): Promise<void> {
  const begin = performance.now()
  try {
    const seen = await what()
    totals.passed++
    console.log(`ok      ${name}: ${seen} (${((performance.now() - begin) / 1000).toFixed(1)} s)`)
  } catch (error) {
    totals.failed++
    console.log(`FAILED  ${name}: ${reasonOf(error)}`)
  }
}

function expect(isRight: boolean, what: string): void {
  if (!isRight) throw new Error(what)
}

const configOf = (dir: string, urls: string[], more: { readonly run?: object } = {}) =>
  parseConfig({
    ...{ model: { dir }, data: { train: data }, task: { verifier: 'countdown' } },
    sampling: { promptsPerStep: 16, groupSize: 32, maxNewTokens: 16 },
    objective: { preset: 'rapo', klCoef: 0.02, entropyCoef: 0.003 },
    optimizer: { learningRate: 0.0003 },
    rollouts: urls.length > 0 ? { engine: 'vllm', urls, timeoutSeconds: 600 } : {},
    run: {
      output: path.join(dir, '..', `run-${urls.length}`),
      steps: 10,
      saveEvery: 10,
      threads: 1,
      ...more.run,
    },
  })

const openOn = (url: string, policy: Policy, dir: string): RolloutEngine =>
  openEngine(configOf(dir, [url]), {
    ...{ policy, modelDir: dir, stopTokenIds: sampling.stopTokenIds },
    prompts: texts.map(text => tokenizer.encode(text)),
  })

const open = (dir: string) => loadPolicy(dir, { referenceDir: dir })

/** |log-prob of the engine − log-prob of the policy| of new completions. */
async function differences(engine: Sampler, policy: Policy, temperature: number) {
  const completions = unpackCompletions(await engine.generate(prompts, { ...sampling, temperature }))
  const sequences = packTokens(completions.map(({ tokenIds }, i) => [...promptOf(i), ...tokenIds]))
  const rowPositions = completions.flatMap(({ tokenIds }, i) =>
    Array.from(tokenIds, (_, t) => sequences.offsets[i]! + promptOf(i).length + t - 1),
  )
  const tokenIds = completions.flatMap(completion => [...completion.tokenIds])
  const rows = { rowPositions: Int32Array.from(rowPositions), tokenIds: Int32Array.from(tokenIds) }
  const { logprobs } = await policy.logprobs(sequences, rows, temperature)
  const off = completions
    .flatMap(completion => [...completion.logprobs])
    .map((x, i) => Math.abs(x - logprobs[i]!))
  return { mean: moments(off).mean, max: Math.max(...off), tokens: off.length }
}

const promptOf = (completion: number): number[] => partOf(prompts, Math.floor(completion / sampling.n))
const partOf = ({ tokenIds, offsets }: PackedTokens, i: number) => [
  ...tokenIds.subarray(offsets[i]!, offsets[i + 1]!),
]

const shown = ({ mean, max, tokens }: { mean: number; max: number; tokens: number }) =>
  `mean ${mean.toExponential(1)}, largest ${max.toExponential(1)} nats over ${tokens} tokens`

/** Moves the weights, as training does. */
async function trainOnce(policy: Policy): Promise<void> {
  const ids = [...partOf(prompts, 0), 5, 6, 7]
  await policy.accumulate(
    {
      sequences: packTokens([ids]),
      rowPositions: Int32Array.of(ids.length - 3, ids.length - 2),
      tokenIds: Int32Array.of(6, 7),
      tokenWeights: Float32Array.of(0.5, 0.5),
      advantages: Float32Array.of(1, 1),
      oldLogprobs: Float32Array.of(-1, -1),
    },
    grpo(),
  )
  await policy.step(0.01)
}

async function checkServer({ url }: Vllm): Promise<void> {
  const connection = connect(url)
  const call = { timeoutSeconds: 600 }
  const post = (route: string, body: object = {}) => postJson(connection, route, body, call)
  const running = async () => {
    const { text } = await connection.request('/metrics', call)
    return Number(/^vllm:num_requests_running\{.*\} (\S+)$/m.exec(text)![1])
  }
  const until = async (isReached: (count: number) => boolean) => {
    while (!isReached(await running()));
  }
  const { version } = await getJson(connection, '/version', call)
  const policy = await open(model)
  const engine = openOn(url, policy, model)
  try {
    await engine.syncWeights(0)
    for (const temperature of [1, 0.7]) {
      await check(`vLLM ${version}, log-probs at temperature ${temperature}`, async () => {
        const found = await differences(engine, policy, temperature)
        expect(found.max < BOUND, shown(found))
        return shown(found)
      })
    }
    await check('weights by disk', async () => {
      await trainOnce(policy)
      const before = await differences(engine, policy, 1)
      expect(before.mean > 100 * BOUND, `the step moved the log-probs by a mean of ${before.mean} only`)
      const begin = performance.now()
      await engine.syncWeights(1)
      const seconds = (performance.now() - begin) / 1000
      const after = await differences(engine, policy, 1)
      expect(after.max < BOUND, shown(after))
      return `from a mean of ${before.mean.toExponential(1)} to ${shown(after)}; written, loaded and checked in ${seconds.toFixed(2)} s`
    })
    const many = {
      ...{ model: 'policy', prompt: partOf(prompts, 0), n: 16, max_tokens: 50, ignore_eos: true },
      ...{ temperature: 1, logprobs: 0, return_token_ids: true },
    }
    for (const mode of ['wait', 'keep', 'abort']) {
      await check(`pause?mode=${mode} while 128 completions are sampled`, async () => {
        const answers = Array.from({ length: 8 }, () => post('/v1/completions', many))
        await until(count => count > 0)
        const begin = performance.now()
        await post(`/pause?mode=${mode}`)
        const seconds = (performance.now() - begin) / 1000
        const kwargs = { weights_path: model }
        await post('/collective_rpc', { method: 'reload_weights', kwargs })
        const cache = mode === 'keep' ? '?reset_running_requests=true' : ''
        const { success } = await post(`/reset_prefix_cache${cache}`)
        expect(success === true, 'the cache was not reset')
        await post('/resume')
        const choices = (await Promise.all(answers)).flatMap(
          ({ choices }) => choices as { finish_reason: string; token_ids: number[] }[],
        )
        const reasons = [...new Set(choices.map(choice => choice.finish_reason))].sort().join(' and ')
        const tokens = choices.reduce((sum, choice) => sum + choice.token_ids.length, 0)
        expect(choices.length === 128, `${choices.length} completions came back`)
        const isWhole = tokens === 128 * 50
        expect(
          mode === 'abort' ? reasons.startsWith('abort') && !isWhole : isWhole,
          `${reasons}, ${tokens} tokens`,
        )
        return `paused after ${seconds.toFixed(2)} s; ${tokens} of 6400 tokens came back, finish_reason ${reasons}`
      })
    }
    await check('closing a connection frees the server', async () => {
      const controller = new AbortController()
      const asked = postJson(connection, '/v1/completions', many, { ...call, signal: controller.signal })
      await until(count => count > 0)
      controller.abort(new Error('gone'))
      const reason = reasonOf(await asked.catch(error => error))
      await until(count => count === 0)
      return `the call rejects with "${reason}", and no request is left running`
    })
  } finally {
    await engine.close()
    await policy.dispose()
    connection.close()
  }
  await check('ten steps of RAPO, beside ten with local rollouts', async () => {
    const rewards = async (urls: string[]) => {
      const lines: StepMetrics[] = []
      await train(configOf(model, urls), { overwrite: true, onStep: line => void lines.push(line) })
      return lines
    }
    const [servers, local] = [await rewards([url]), await rewards([])]
    const mean = (lines: StepMetrics[]) => moments(lines.map(line => line.rewardMean)).mean
    const each = 16 * 32 * 10
    // The same problems, sampled twice: the difference of two means of independent completions.
    const error = Math.sqrt([servers, local].reduce((sum, lines) => sum + lines[0]!.rewardStd ** 2 / each, 0))
    const off = Math.abs(mean(servers) - mean(local))
    const mismatch = Math.max(...servers.map(({ mismatchMean }) => mismatchMean!))
    expect(off < 5 * error, `mean rewards ${mean(servers)} and ${mean(local)}, standard error ${error}`)
    expect(mismatch < BOUND, `mismatchMean ${mismatch}`)
    const curve = (lines: StepMetrics[]) => lines.map(line => line.rewardMean.toFixed(3)).join(' ')
    return `reward ${curve(servers)} (local: ${curve(local)}), means ${off.toFixed(3)} apart, standard error ${error.toFixed(3)}; largest mismatchMean ${mismatch.toExponential(1)}`
  })
}

async function checkTied({ url }: Vllm): Promise<void> {
  await check('the canary finds a tied model, whose output layer vLLM on a CPU does not reload', async () => {
    const policy = await open(tied)
    const engine = openOn(url, policy, tied)
    try {
      await engine.syncWeights(0)
      await trainOnce(policy)
      const failure = await engine.syncWeights(1).then(
        () => undefined,
        error => reasonOf(error),
      )
      expect(failure !== undefined, 'the canary let the server pass')
      const why = /its log-probs differ from the policy's by \S+ nats a token/.exec(failure!)
      expect(why !== null, failure!)
      return why![0]
    } finally {
      await engine.close()
      await policy.dispose()
    }
  })
}

async function serving(python: string, served: string, body: (server: Vllm) => Promise<void>): Promise<void> {
  const server = await startVllm(python, served, { log: path.join(dir, `${path.basename(served)}.log`) })
  console.log(`vLLM serves the ${path.basename(served)} model after ${server.seconds.toFixed(0)} s`)
  try {
    await body(server)
  } finally {
    await server.stop()
  }
}

const environment = await vllmEnvironment().catch(error => console.log(`skipped: ${reasonOf(error)}`))
if (environment) {
  await check('the padded model is the bundled one', async () => {
    const [own, given] = await Promise.all([loadPolicy(model), loadPolicy(bundled)])
    const found = await differences(given, own, 1)
    expect(found.max < BOUND, shown(found))
    return shown(found)
  })
  await serving(environment.python, model, checkServer)
  await serving(environment.python, tied, checkTied)
  console.log(`${totals.passed} passed, ${totals.failed} failed`)
  process.exitCode = totals.failed ? 1 : 0
}
