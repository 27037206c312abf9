/** Training on rollouts from servers: the weights of each step reach them, and nothing is trained on the wrong ones. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { parseConfig } from '../../lib/config/load.js'
import { readLatestCheckpoint } from '../../lib/train/checkpoint.js'
import type { StepMetrics } from '../../lib/train/metrics.js'
import { prepareRun } from '../../lib/train/open.js'
import { train } from '../../lib/train/train.js'
import { alone } from '../../lib/world/world.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'
import { type FakeServer, type Faults, startFakeServer } from '../helpers/fake-servers.js'
import { makeConfig } from '../helpers/train-child.js'

const model = makeFakeModel({ 1: Math.log(5), 10: Math.log(5) })
const loadPolicy = loadFakePolicy

/** Reloads and completions as the server saw them: 'v3' for a reload, '.' for requests for completions after it. */
function eventsOf(server: FakeServer): string[] {
  const events = server.requests.flatMap(({ route, body }) => {
    if (route === '/collective_rpc') return [body.kwargs.weights_path.replace(/.*-(v\d+)$/, '$1')]
    return route === '/v1/completions' ? ['.'] : []
  })
  return events.filter((event, i) => event !== '.' || events[i - 1] !== '.')
}

async function withServer(faults: Faults, body: (server: FakeServer) => Promise<void>): Promise<void> {
  const server = await startFakeServer('vllm', model, faults)
  try {
    await body(server)
  } finally {
    await server.close()
  }
}

/** Kills the server at its nth request for completions from now on, and starts it again. */
function restartAt(n: number, faults: Faults, server: FakeServer, restarted = () => {}): void {
  let count = 0
  faults.onRequest = async route => {
    if (route !== '/v1/completions' || ++count !== n) return undefined
    await server.kill()
    await server.restart()
    restarted()
    return undefined
  }
}

const configOf = (output: string, { url }: FakeServer, run: object = {}, rollouts: object = {}) =>
  makeConfig(output, model, { run, rollouts: { engine: 'vllm', urls: [url], ...rollouts } })

test('a run learns from a server, whose weights are those of the step before each step', () =>
  withServer({}, async server => {
    const output = path.join(makeTempDir(), 'run')
    const lines: StepMetrics[] = []
    await train(configOf(output, server), { loadPolicy, onStep: line => void lines.push(line) })
    assert.equal(eventsOf(server), Array.from({ length: 40 }, (_, step) => [`v${step}`, '.']).flat())
    const mean = (some: StepMetrics[]) => some.reduce((sum, line) => sum + line.rewardMean, 0) / some.length
    assert.ok(mean(lines.slice(-5)) > mean(lines.slice(0, 5)) + 0.3)
    for (const { mismatchMean, mismatchP99, mismatchOutsideFraction, importanceMean } of lines) {
      // Log-probs of float64 weights, rounded to float32 on both ways.
      assert.ok(mismatchMean! < 1e-6 && mismatchP99! < 1e-6, `${mismatchMean} ${mismatchP99}`)
      assert.is(mismatchOutsideFraction, 0)
      assert.ok(Math.abs(importanceMean! - 1) < 1e-6)
    }
    assert.equal(readdirSync(path.join(output, 'weights')), [])
  }))

test('a resumed run gives the server its weights before the first rollout', () =>
  withServer({}, async server => {
    const output = path.join(makeTempDir(), 'run')
    await train(configOf(output, server, { steps: 3 }), { loadPolicy })
    await server.kill()
    await server.restart()
    const before = eventsOf(server).length
    await train(configOf(output, server, { steps: 5 }), { loadPolicy, resume: true })
    assert.equal(eventsOf(server).slice(before), ['v3', '.', 'v4', '.'])
  }))

test('what servers sample is refused where it is too far from the policy', () => {
  const faults: Faults = {}
  const other = makeFakeModel({ 7: 3 })
  let count = 0
  faults.onRequest = route => {
    // The canary of the first step has two requests a prompt of 4; what follows is sampled by another model.
    if (route === '/v1/completions' && ++count > 4) faults.otherModel = other
    return undefined
  }
  return withServer(faults, async server => {
    const output = path.join(makeTempDir(), 'run')
    const failure = await train(configOf(output, server), { loadPolicy }).catch(error => error)
    assert.match(failure.message, /differ from the policy's by .* rollouts.maxMismatch allows 0.5/)
    assert.not.ok(readLatestCheckpoint(output))
  })
})

for (const place of ['save', 'step']) {
  test(`a run that is killed at ${place} goes on from its checkpoint, and the server gets those weights`, () =>
    withServer({}, async server => {
      const output = path.join(makeTempDir(), 'run')
      const changes = JSON.stringify({
        run: { steps: 8, saveEvery: 2 },
        rollouts: { engine: 'vllm', urls: [server.url] },
      })
      const child = spawn(
        process.execPath,
        ['--import', 'tsx', 'test/helpers/train-child.ts', 'run', output, model, place, '5', changes],
        { stdio: 'inherit' },
      )
      assert.equal(await once(child, 'exit'), [null, 'SIGKILL'])
      const { step } = readLatestCheckpoint(output)!.trainer
      const before = eventsOf(server).length
      await train(configOf(output, server, { steps: 8, saveEvery: 2 }), { loadPolicy, resume: true })
      const expected = Array.from({ length: 8 - step }, (_, i) => [`v${step + i}`, '.']).flat()
      assert.equal(eventsOf(server).slice(before), expected)
      const lines = readFileSync(path.join(output, 'metrics.jsonl'), 'utf8').trim().split('\n')
      assert.equal(
        lines.map(line => JSON.parse(line).step),
        [1, 2, 3, 4, 5, 6, 7, 8],
      )
      // What the killed process had written for the server is gone too.
      assert.equal(readdirSync(path.join(output, 'weights')), [])
    }))
}

test('a server that is killed and started again in the middle of a run gets the weights of that step', () => {
  const faults: Faults = {}
  return withServer(faults, async server => {
    restartAt(30, faults, server)
    const output = path.join(makeTempDir(), 'run')
    await train(configOf(output, server, { steps: 6 }), { loadPolicy })
    const loads = eventsOf(server).filter(event => event !== '.')
    // One version twice, all in their order.
    assert.is(loads.length, 7)
    assert.equal(
      loads.filter((load, i) => load !== loads[i - 1]),
      ['v0', 'v1', 'v2', 'v3', 'v4', 'v5'],
    )
  })
})

test('one step off: the next step is sampled while a step is trained on, from weights that are one update old', () => {
  let trained = () => {}
  const training = new Promise<undefined>(resolve => (trained = () => resolve(undefined)))
  let count = 0
  // The first step is sampled, then the second: 4 prompts each, after 4 requests of the canary each time.
  const onRequest = (route: string) => (route === '/v1/completions' && ++count > 8 ? training : undefined)
  return withServer({ onRequest }, async server => {
    const output = path.join(makeTempDir(), 'run')
    const lines: StepMetrics[] = []
    const overlapped: typeof loadPolicy = async (from, options) => {
      const policy = await loadPolicy(from, options)
      return {
        ...policy,
        step: async rate => {
          // Without overlap no request of the second step would come before this.
          while (count <= 8) await new Promise(resolve => setImmediate(resolve))
          trained()
          return policy.step(rate)
        },
      }
    }
    const config = configOf(output, server, { steps: 5 }, { maxStaleness: 1 })
    await train(config, { loadPolicy: overlapped, onStep: line => void lines.push(line) })
    assert.equal(
      lines.map(({ staleness }) => staleness),
      [0, 1, 1, 1, 1],
    )
    assert.equal(
      eventsOf(server).filter(event => event !== '.'),
      ['v0', 'v1', 'v2', 'v3'],
    )
    for (const { trainerIdleFraction, serversIdleFraction, seconds } of lines) {
      assert.ok(trainerIdleFraction! >= 0 && trainerIdleFraction! <= 1)
      // Nothing is sampled while weights are sent.
      assert.ok(serversIdleFraction! > 0 && serversIdleFraction! <= 1)
      assert.ok(seconds.sync! >= 0)
    }
  })
})

/** The lines of a run without what depends on time. */
function linesOf(output: string): object[] {
  return readFileSync(path.join(output, 'metrics.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map(line => {
      const { seconds: _, trainerIdleFraction: __, serversIdleFraction: ___, ...rest } = JSON.parse(line)
      return rest
    })
}

const weightsOf = (output: string) =>
  readFileSync(path.join(readLatestCheckpoint(output)!.dir, 'weights.json'), 'utf8')

for (const [maxStaleness, place, count] of [
  // The weights for the server are saved too: this is the checkpoint of step 4.
  [1, 'save', 6],
  [1, 'accumulate', 6],
  [3, 'accumulate', 6],
] as const) {
  test(`${maxStaleness} ahead, killed at ${place}: the resumed run uses the rollouts of its checkpoint, and ends as an unbroken one`, () =>
    withServer({}, async server => {
      const [unbroken, output] = ['a', 'b'].map(name => path.join(makeTempDir(), name)) as [string, string]
      const run = { steps: 8, saveEvery: 2 }
      const rollouts = { maxStaleness, sendSeeds: true }
      await train(configOf(unbroken, server, run, rollouts), { loadPolicy })
      const changes = { run, rollouts: { engine: 'vllm', urls: [server.url], ...rollouts } }
      const child = spawn(
        process.execPath,
        [
          '--import',
          'tsx',
          'test/helpers/train-child.ts',
          'run',
          output,
          model,
          place,
          `${count}`,
          JSON.stringify(changes),
        ],
        { stdio: 'inherit' },
      )
      assert.equal(await once(child, 'exit'), [null, 'SIGKILL'])
      const { trainer, rolloutsFile } = readLatestCheckpoint(output)!
      assert.ok(rolloutsFile)
      const before = server.requests.length
      await train(configOf(output, server, run, rollouts), { loadPolicy, resume: true })
      // The steps after the checkpoint were sampled before it: only later ones are asked for, 4 prompts each.
      const asked = server.requests.slice(before).filter(({ body }) => body.seed !== undefined)
      assert.is(asked.length, 4 * (8 - trainer.step - maxStaleness))
      assert.equal(linesOf(output), linesOf(unbroken))
      assert.is(weightsOf(output), weightsOf(unbroken))
    }))
}

test('one step off, the only server dies while the next step is sampled: it is sampled again, from the weights of then', () => {
  const faults: Faults = {}
  return withServer(faults, async server => {
    // The third request of the third step; the canary has 4 a version.
    restartAt(4 + 8 + 4 + 3, faults, server)
    const output = path.join(makeTempDir(), 'run')
    const lines: StepMetrics[] = []
    const config = configOf(output, server, { steps: 5 }, { maxStaleness: 1 })
    await train(config, { loadPolicy, onStep: line => void lines.push(line) })
    assert.equal(
      lines.map(({ staleness }) => staleness),
      [0, 1, 0, 1, 1],
    )
    // No problem is left out: the order is that of a run whose server lives.
    const other = path.join(makeTempDir(), 'run')
    await train(configOf(other, server, { steps: 5 }, { maxStaleness: 1 }), { loadPolicy })
    const cursorOf = (dir: string) => readLatestCheckpoint(dir)!.trainer.cursor
    assert.equal(cursorOf(output), cursorOf(other))
  })
})

test('3 ahead: no rollout is older, updates come in flight, and what is measured says which tokens are old', () => {
  const faults: Faults = { hasScaleOut: true }
  return withServer(faults, async server => {
    let count = 0
    faults.midway = async () => {
      // The rollouts of the third step wait for the first update, which is made before they are trained on.
      if (++count <= 8 || count > 12) return
      while (!server.weightsName().endsWith('-v1')) await new Promise(resolve => setImmediate(resolve))
    }
    const output = path.join(makeTempDir(), 'run')
    const lines: StepMetrics[] = []
    const config = configOf(output, server, { steps: 8 }, { maxStaleness: 3 })
    await train(config, { loadPolicy, onStep: line => void lines.push(line) })
    assert.equal(
      lines.map(({ staleness }) => staleness),
      [0, 1, 2, 3, 3, 3, 3, 3],
    )
    const { stalenessMean, mixedFraction, mismatchMean } = lines[2]!
    // First tokens are 2 updates old, the others 1.
    assert.ok(stalenessMean! > 1 && stalenessMean! < 2, `${stalenessMean}`)
    assert.ok(mixedFraction! > 0.5 && mixedFraction! <= 1, `${mixedFraction}`)
    assert.ok(mismatchMean! > 1e-6)
    for (const i of [0, 1, 3, 4, 5, 6, 7]) assert.is(lines[i]!.mixedFraction, 0)
    assert.ok(server.requests.some(({ route }) => route === '/pause?mode=keep'))
    // Each problem of the order was taken once.
    const { epoch, position } = readLatestCheckpoint(output)!.trainer.cursor
    assert.is(epoch * 10 + position, 8 * 4)
  })
})

test('3 ahead, the only server dies: what it was sampling is sampled again, and no problem is left out', () => {
  const faults: Faults = {}
  return withServer(faults, async server => {
    restartAt(30, faults, server)
    const output = path.join(makeTempDir(), 'run')
    const lines: StepMetrics[] = []
    const config = configOf(output, server, { steps: 7 }, { maxStaleness: 3 })
    await train(config, { loadPolicy, onNotice: () => {}, onStep: line => void lines.push(line) })
    assert.equal(
      lines.map(({ step }) => step),
      [1, 2, 3, 4, 5, 6, 7],
    )
    assert.ok(lines.every(({ staleness }) => staleness! <= 3))
    const { epoch, position } = readLatestCheckpoint(output)!.trainer.cursor
    assert.is(epoch * 10 + position, 7 * 4)
  })
})

test('a run that is resumed with a smaller maxStaleness uses no rollouts that are older', () =>
  withServer({}, async server => {
    const output = path.join(makeTempDir(), 'run')
    const run = { steps: 7, saveEvery: 2 }
    let stepsSeen = 0
    await train(configOf(output, server, run, { maxStaleness: 3 }), {
      ...{ loadPolicy, isStopping: () => ++stepsSeen === 4 },
    })
    const lines: StepMetrics[] = []
    await train(configOf(output, server, run, { maxStaleness: 2 }), {
      ...{ loadPolicy, resume: true, onStep: line => void lines.push(line) },
    })
    // Those of step 5 were sampled by version 1, 3 updates before.
    assert.equal(
      lines.map(({ step, staleness }) => [step, staleness]),
      [
        [5, 0],
        [6, 1],
        [7, 2],
      ],
    )
  }))

test('a resumed run without maxStaleness samples the problems of the rollouts in its checkpoint again', () =>
  withServer({}, async server => {
    const output = path.join(makeTempDir(), 'run')
    const run = { steps: 6, saveEvery: 2 }
    const options = { loadPolicy, isStopping: () => stepsSeen++ === 1 }
    let stepsSeen = 0
    await train(configOf(output, server, run, { maxStaleness: 1 }), options)
    assert.ok(readLatestCheckpoint(output)!.rolloutsFile)
    const lines: StepMetrics[] = []
    await train(configOf(output, server, run), {
      loadPolicy,
      resume: true,
      onStep: line => void lines.push(line),
    })
    assert.equal(
      lines.map(({ step, staleness }) => [step, staleness]),
      [3, 4, 5, 6].map(step => [step, 0]),
    )
    const { epoch, position } = readLatestCheckpoint(output)!.trainer.cursor
    assert.is(epoch * 10 + position, 24)
  }))

test('evaluation during training: the server samples, from the weights after that step', () =>
  withServer({}, async server => {
    const output = path.join(makeTempDir(), 'run')
    const config = configOf(output, server, { steps: 4 })
    const own = {
      ...config,
      data: { ...config.data, eval: config.data.train },
      eval: { ...config.eval, every: 2, onStart: true, samplesInTraining: 4, problemsInTraining: 3 },
    }
    const mute: typeof loadPolicy = async (from, options) => {
      const policy = await loadPolicy(from, options)
      return { ...policy, generate: () => assert.unreachable('the policy sampled') as never }
    }
    await train(own, { loadPolicy: mute })
    const evaluations = readFileSync(path.join(output, 'evals.jsonl'), 'utf8').trim().split('\n')
    assert.equal(
      evaluations.map(line => JSON.parse(line).step),
      [0, 2, 4],
    )
    // v0 serves the evaluation before the first step and the first step; v4 the last evaluation alone.
    assert.equal(eventsOf(server), ['v0', '.', 'v1', '.', 'v2', '.', 'v3', '.', 'v4', '.'])
    const asked = server.requests.filter(({ body }) => body.n === 4 && body.max_tokens === 4)
    // The canary's 4 prompts have 4 completions each after every update, and the 3 problems of each evaluation.
    assert.is(asked.length, 5 * 4 + 3 * 3)
  }))

test('what becomes of the servers is told to onNotice; an onNotice that throws ends the run, whose state is saved', () => {
  const faults: Faults = {}
  return withServer(faults, async server => {
    const tooSmall = () => {
      faults.maxModelLen = 1
    }
    restartAt(30, faults, server, tooSmall)
    const output = path.join(makeTempDir(), 'run')
    const told: string[] = []
    const onNotice = (text: string) => void told.push(text)
    const failure = await train(configOf(output, server), { loadPolicy, onNotice }).catch(error => error)
    assert.match(failure.message, 'no server is left for the rollouts')
    assert.match(told.join('\n'), /a server is not used: .* takes prompt and completion of at most 1 tokens/)
    const { step } = readLatestCheckpoint(output)!.trainer
    faults.maxModelLen = 64
    const reason = new Error('not interested')
    const rude = (text: string) => {
      if (!text.startsWith('a server')) return
      faults.maxModelLen = 64
      throw reason
    }
    restartAt(5, faults, server, tooSmall)
    const ended = await train(configOf(output, server), {
      ...{ loadPolicy, resume: true, onNotice: rude },
    }).catch(error => error)
    assert.is(ended, reason)
    assert.ok(readLatestCheckpoint(output)!.trainer.step >= step)
  })
})

test('several processes that train together are refused', async () => {
  const config = makeConfig(path.join(makeTempDir(), 'run'), model, {
    rollouts: { engine: 'vllm', urls: ['http://localhost:9'] },
  })
  const failure = await prepareRun(config, { loadPolicy }, { ...alone, size: 2 }).catch(error => error)
  assert.is(failure.message, 'rollouts.engine is vllm; it must be local where there are 2 processes')
})

test('configuration: correction is on by default, and what servers cannot do is refused', () => {
  const minimal = { model: { dir: 'm' }, task: { verifier: 'exact' } }
  const rollouts = { engine: 'vllm', urls: 'http://a:1, http://b:2/' }
  const { correction, rollouts: read } = parseConfig({ ...minimal, rollouts })
  assert.equal(correction, { level: 'token', outside: 'truncate', low: 0, high: 2 })
  assert.equal(read.urls, ['http://a:1', 'http://b:2/'])
  const levelOf = (more: object) => parseConfig({ ...minimal, rollouts, ...more }).correction.level
  assert.is(levelOf({ correction: { level: 'off' } }), 'off')
  assert.is(levelOf({ objective: { preset: 'gspo' } }), 'sequence')
  assert.is(parseConfig(minimal).correction.level, 'off')
  const bad = (section: object): string => {
    try {
      parseConfig({ ...minimal, rollouts: section })
    } catch (error) {
      return (error as Error).message
    }
    return 'it was accepted'
  }
  const two = { engine: 'vllm', urls: 'http://a', maxStaleness: 2 }
  assert.throws(
    () => parseConfig({ ...minimal, rollouts: two, correction: { level: 'off' } }),
    'correction.level is off; it must be token or sequence with rollouts.maxStaleness 2',
  )
  assert.throws(
    () => parseConfig({ ...minimal, rollouts: two, sampling: { filterGroups: 'acc' } }),
    'rollouts.maxStaleness is 2; it must be ≤ 1 with sampling.filterGroups acc',
  )
  assert.is(parseConfig({ ...minimal, rollouts: two }).rollouts.maxStaleness, 2)
  assert.match(bad({ ...two, maxStaleness: 65 }), 'rollouts.maxStaleness is 65; it must be')
  assert.match(
    bad({ maxStaleness: 1 }),
    'rollouts.maxStaleness is 1; it must be 0 with rollouts.engine local',
  )
  assert.match(bad({ engine: 'vllm' }), 'rollouts.urls is empty; rollouts.engine vllm needs an address')
  assert.match(
    bad({ urls: ['http://a'] }),
    'rollouts.urls is http://a; it needs rollouts.engine vllm or sglang',
  )
  assert.match(
    bad({ engine: 'vllm', urls: ['a:1'] }),
    'rollouts.urls is ["a:1"]; it must be a list of addresses',
  )
  assert.match(bad({ engine: 'vllm', urls: 'http://a, http://a' }), 'rollouts.urls names http://a twice')
})

test('vllm: filters, which change its log-probs, are refused before anything is written', () =>
  withServer({}, async server => {
    const output = path.join(makeTempDir(), 'run')
    for (const [field, value] of Object.entries({ topP: 0.9, topK: 5, minP: 0.1 })) {
      const config = configOf(output, server)
      const failure = await train(
        { ...config, sampling: { ...config.sampling, [field]: value } },
        { loadPolicy },
      ).catch(error => error)
      assert.match(failure.message, `sampling.${field} is ${value}; it must be`)
    }
    assert.is(server.requests.length, 0)
  }))

test.run()
