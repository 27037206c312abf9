/** A rollout engine on fake servers, and what tests of it ask. */
import * as assert from 'uvu/assert'
import type { Sync } from '../../lib/config/rollouts.js'
import { packTokens, unpackCompletions } from '../../lib/model/batch.js'
import type { LoadPolicy, Policy } from '../../lib/model/policy.js'
import { loadTokenizer } from '../../lib/model/tokenizer.js'
import type { RolloutEngine } from '../../lib/rollout/engine.js'
import { type ServerEngineOptions, serverEngine } from '../../lib/rollout/servers/engine.js'
import type { InferenceServer } from '../../lib/rollout/servers/server.js'
import { sglangServer } from '../../lib/rollout/servers/sglang.js'
import type { WeightSync } from '../../lib/rollout/servers/sync.js'
import { vllmServer } from '../../lib/rollout/servers/vllm.js'
import { diskWeights } from '../../lib/rollout/servers/weights.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from './fake-policy.js'
import { type FakeServer, type Faults, startFakeServer } from './fake-servers.js'

export const STOP = 1
export const model = makeFakeModel({ [STOP]: 1, 5: 0.5 })
export const prompts = packTokens([[5, 6], [7], [8, 9, 10]])
export const sampling = { n: 4, maxNewTokens: 5, temperature: 0.7, stopTokenIds: [STOP], seed: 7 }
export const kinds = ['vllm', 'sglang'] as const

export interface Stage {
  readonly servers: FakeServer[]
  readonly policy: Policy
  readonly engine: RolloutEngine
  readonly syncDir: string
  /** What onNotice was told. */
  readonly notices: string[]
}

/** How a stage differs from one of the fake policy, with weights by disk. */
export interface StageOptions {
  readonly sync?: Sync
  readonly model?: string
  readonly loadPolicy?: LoadPolicy
  readonly weightsOf?: (policy: Policy, syncDir: string) => WeightSync
  /** Changes what the engine uses to talk to a server. */
  readonly wrap?: (server: InferenceServer) => InferenceServer
}

export async function stage(
  kind: (typeof kinds)[number],
  faults: readonly Faults[],
  body: (stage: Stage) => Promise<void>,
  changes: Partial<ServerEngineOptions> = {},
  options: StageOptions = {},
): Promise<void> {
  const { sync = 'disk', model: from = model, loadPolicy = loadFakePolicy, wrap = server => server } = options
  const servers = await Promise.all(faults.map(some => startFakeServer(kind, from, some, loadPolicy)))
  const policy = await loadPolicy(from)
  const syncDir = makeTempDir()
  const connect = kind === 'vllm' ? vllmServer : sglangServer
  const place = { syncDir, owner: 'run', modelDir: from }
  const notices: string[] = []
  const engine = serverEngine({
    servers: servers.map(({ url }) => wrap(connect(url, sync))),
    policy,
    weights: options.weightsOf?.(policy, syncDir) ?? diskWeights(policy, place),
    canary: {
      ...{ prompts: [[5, 6], [7]], temperature: 0.7, maxNewTokens: 5, stopTokenIds: [STOP] },
      tolerance: 1e-4,
    },
    text: { text: '7=7', tokenIds: loadTokenizer(from).encode('7=7') },
    ...{ contextNeeded: 8, timeoutSeconds: 20, maxInFlight: 2, sendSeeds: false, isOverlapped: false },
    onNotice: text => notices.push(text),
    ...changes,
  })
  try {
    await body({ servers, policy, engine, syncDir, notices })
  } finally {
    await engine.close()
    await Promise.all(servers.map(server => server.close()))
    await policy.dispose()
  }
}

export async function failureOf(work: Promise<unknown>): Promise<string> {
  const error = await work.then(
    () => assert.unreachable('it succeeded'),
    (error: { code?: string; message: string }) => error,
  )
  return `${error!.code}: ${error!.message}`
}

/** Moves the policy's weights away from those of before, as training does. */
export async function trainOnce(
  policy: Policy,
  objective: object = { klCoef: 0 },
  learningRate = 1,
): Promise<void> {
  await policy.accumulate(
    {
      sequences: packTokens([[5, 6, 9]]),
      ...{ rowPositions: Int32Array.of(1), tokenIds: Int32Array.of(9) },
      ...{ tokenWeights: Float32Array.of(1), advantages: Float32Array.of(1) },
      oldLogprobs: Float32Array.of(-1),
    },
    objective as never,
  )
  await policy.step(learningRate)
}

/** That the engine's log-probs are those of the policy of now. */
export async function checkSampled(engine: RolloutEngine, policy: Policy): Promise<void> {
  const sampled = await engine.generate(prompts, sampling)
  assert.is(sampled.finishReasons.length, 12)
  for (const [i, completion] of unpackCompletions(sampled).entries()) {
    const start = prompts.offsets[Math.floor(i / 4)]!
    const prompt = prompts.tokenIds.subarray(start, prompts.offsets[Math.floor(i / 4) + 1]!)
    const sequences = packTokens([[...prompt, ...completion.tokenIds]])
    const rowPositions = Int32Array.from(completion.tokenIds, (_, t) => prompt.length + t - 1)
    const rows = { rowPositions, tokenIds: completion.tokenIds }
    const { logprobs } = await policy.logprobs(sequences, rows, sampling.temperature)
    assert.equal([...completion.logprobs], [...logprobs], `completion ${i}`)
    const isStopped = completion.tokenIds.at(-1) === STOP
    assert.is(completion.finishReason, isStopped ? 'stop' : 'length')
  }
}
