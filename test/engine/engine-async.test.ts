/** Calls off the main thread: responsiveness, progress, abort, order, dispose, the end of threads and processes. */
import { execFileSync, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, copyFileSync, openSync, readdirSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import type { Policy } from '../../lib/model/policy.js'
import {
  endless,
  loadPolicy,
  newDir,
  newModel,
  objective,
  pack,
  prompts,
  readSafetensors,
  rejects,
  sampling,
  trainingBatch,
  workerBootstrap,
} from '../helpers/engine-util.js'

const dir = await newModel({
  hidden_size: 128,
  intermediate_size: 384,
  num_hidden_layers: 4,
  initializer_range: 0.1,
})
const many = pack(Array.from({ length: 64 }, (_, i) => [1 + (i % 20), 2, 3, 4]))

test('loading counts the parameters that it reads, and loadState the numbers', async () => {
  for (const [options, models] of [
    [{ trainable: false }, 1],
    [{}, 1],
    [{ referenceDir: dir }, 2],
    // The masters are read, too.
    [{ dtype: 'bfloat16', referenceDir: dir }, 3],
  ] as const) {
    const told: [number, number][] = []
    const policy = await loadPolicy(dir, { ...options, onProgress: (...counts) => told.push(counts) })
    const { parameters } = policy.info
    assert.equal(told.at(-1), [models * parameters, models * parameters])
    if (models === 3) {
      const file = path.join(newDir(), 'state.safetensors')
      await policy.saveState(file)
      await policy.loadState(file, { onProgress: (...counts) => told.push(counts) })
      assert.equal(told.at(-1), [3 * parameters, 3 * parameters])
    }
    await policy.dispose()
  }
})

const open = () => loadPolicy(dir, { referenceDir: dir })

/** What the promise rejects with. */
const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => assert.unreachable('it did not reject'),
    error => error,
  )

/** Keeps the engine's thread busy until release() is called: it opens a pipe that nobody writes to. */
async function holdEngine(): Promise<{ release: () => Promise<void> }> {
  const held = newDir()
  copyFileSync(path.join(dir, 'config.json'), path.join(held, 'config.json'))
  const pipe = path.join(held, 'model.safetensors')
  execFileSync('mkfifo', [pipe])
  const loading = rejects(loadPolicy(held), /not a regular file/, 'ERR_RAPO_FORMAT')
  return {
    async release() {
      closeSync(openSync(pipe, 'w'))
      await loading
    },
  }
}

test('calls that wait hold neither the event loop nor a thread that files need', async () => {
  const threads = Number(process.env.UV_THREADPOOL_SIZE ?? 4)
  const policies = await Promise.all(Array.from({ length: threads }, open))
  const { release } = await holdEngine()
  const order: string[] = []
  const calls = policies.map(policy => policy.generate(prompts, sampling).then(() => order.push('generate')))
  for (let i = 0; i < 10; i++) await turn()
  assert.match(await readFile(path.join(dir, 'config.json'), 'utf8'), 'qwen2')
  order.push('read')
  await release()
  await Promise.all(calls)
  assert.equal(order, ['read', ...calls.map(() => 'generate')])
  await Promise.all(policies.map(policy => policy.dispose()))
})

test('the event loop turns while generate runs: progress comes, and an abort stops it with its reason', async () => {
  const policy = await open()
  const controller = new AbortController()
  const reason = new Error('enough')
  const seen = new Set<number>()
  let all = 0
  const call = policy.generate(many, endless, {
    signal: controller.signal,
    onProgress: (done, total) => {
      seen.add(done)
      all = total
      if (seen.size === 3) controller.abort(reason)
    },
  })
  assert.is(await failure(call), reason)
  assert.is(all, (many.offsets.length - 1) * endless.n * endless.maxNewTokens)
  assert.ok(Math.max(...seen) < all)
  // The policy is as good as new.
  const again = await policy.generate(prompts, sampling)
  assert.equal(await policy.generate(prompts, sampling), again)
  await policy.dispose()
})

test('an error of onProgress aborts the call, which rejects with that error', async () => {
  const policy = await open()
  const error = new Error('of the callback')
  const callbacks = {
    thrown: () => {
      throw error
    },
    rejected: async () => {
      await turn()
      throw error
    },
  }
  for (const [name, onProgress] of Object.entries(callbacks)) {
    assert.is(await failure(policy.generate(many, endless, { onProgress })), error, name)
  }
  assert.is((await policy.generate(prompts, sampling)).finishReasons.length, 4)
  await policy.dispose()
})

test('an error of the last onProgress, when the work is done, loses nothing: it becomes a warning', async () => {
  const policy = await open()
  const expected = await policy.generate(prompts, sampling)
  for (const fail of [
    () => {
      throw new Error('too late')
    },
    () => Promise.reject(new Error('too late')),
  ]) {
    const warned = once(process, 'warning')
    const onProgress = (done: number, total: number) => (done === total ? fail() : undefined)
    assert.equal(await policy.generate(prompts, sampling, { onProgress }), expected)
    const [warning] = await warned
    assert.is(warning.name, 'RapoWarning')
    assert.match(warning.message, 'onProgress failed')
    assert.match(warning.message, 'too late')
  }
  await policy.dispose()
})

test('options of a call are checked', async () => {
  const policy = await open()
  await rejects(policy.generate(prompts, sampling, { signal: {} as AbortSignal }), /signal is .* AbortSignal/)
  await rejects(
    policy.generate(prompts, sampling, { onProgress: 1 as never }),
    /onProgress is 1, expected a function/,
  )
  await rejects(policy.generate(prompts, sampling, null as never), /options is null, expected an object/)
  await rejects(loadPolicy(dir, { signal: 1 as never }), /signal is 1/)
  await policy.dispose()
})

test('a result that cannot be handed over rejects the call', async () => {
  const policy = await open()
  const error = new Error('of a setter')
  const descriptor = {
    configurable: true,
    set() {
      throw error
    },
  }
  Object.defineProperty(Object.prototype, 'stopped', descriptor)
  try {
    assert.is(await failure(policy.generate(prompts, sampling)), error)
  } finally {
    delete (Object.prototype as { stopped?: unknown }).stopped
  }
  assert.is((await policy.generate(prompts, sampling)).finishReasons.length, 4)
  await policy.dispose()
})

test('loadPolicy can be aborted: before, while it waits, and between tensors', async () => {
  assert.is(await failure(loadPolicy(dir, { signal: AbortSignal.abort('no') })), 'no')

  const { release } = await holdEngine()
  const waiting = new AbortController()
  const queued = failure(loadPolicy(dir, { signal: waiting.signal }))
  waiting.abort('no more')
  await release()
  assert.is(await queued, 'no more')

  // The weights come after their index, which is a pipe here.
  const slow = newDir()
  copyFileSync(path.join(dir, 'config.json'), path.join(slow, 'config.json'))
  copyFileSync(path.join(dir, 'model.safetensors'), path.join(slow, 'all.safetensors'))
  const index = path.join(slow, 'model.safetensors.index.json')
  execFileSync('mkfifo', [index])
  const loading = new AbortController()
  const loaded = failure(loadPolicy(slow, { signal: loading.signal }))
  const pipe = openSync(index, 'w')
  loading.abort('not that one')
  const names = [...readSafetensors(path.join(dir, 'model.safetensors')).keys()]
  const map = Object.fromEntries(names.map(name => [name, 'all.safetensors']))
  writeFileSync(pipe, JSON.stringify({ weight_map: map }))
  closeSync(pipe)
  assert.is(await loaded, 'not that one')
})

test('a signal aborted before or while the call waits: nothing is computed', async () => {
  const policy = await open()
  const batch = trainingBatch(prompts, await policy.generate(prompts, { ...sampling, n: 2 }), 2)
  const expected = await policy.accumulate(batch, objective)
  const { gradNorm } = await policy.step(0)

  const first = policy.accumulate(batch, objective)
  const controller = new AbortController()
  const second = policy.accumulate(batch, objective, { signal: controller.signal })
  controller.abort()
  const third = policy.accumulate(batch, objective, { signal: AbortSignal.abort('no') })
  const outcomes = await Promise.allSettled([first, second, third])
  assert.equal(
    outcomes.map(o => o.status),
    ['fulfilled', 'rejected', 'rejected'],
  )
  assert.is((outcomes[1] as PromiseRejectedResult).reason.name, 'AbortError')
  assert.is((outcomes[2] as PromiseRejectedResult).reason, 'no')
  assert.equal((outcomes[0] as PromiseFulfilledResult<unknown>).value, expected)
  assert.is((await policy.step(0)).gradNorm, gradNorm)
  await policy.dispose()
})

test('calls run in the order made, also when they are not awaited', async () => {
  const policy = await open()
  const batch = trainingBatch(prompts, await policy.generate(prompts, { ...sampling, n: 2 }), 2)
  const order: string[] = []
  const named = (name: string, call: Promise<unknown>) => call.then(() => order.push(name))
  const calls = [
    named('accumulate', policy.accumulate(batch, objective)),
    named('step', policy.step(1e-3)),
    named('generate', policy.generate(prompts, sampling)),
    named('zeroGrad', policy.zeroGrad()),
    named('logprobs', policy.logprobs(batch.sequences, batch, 1)),
  ]
  await Promise.all(calls)
  assert.equal(order, ['accumulate', 'step', 'generate', 'zeroGrad', 'logprobs'])
  await policy.dispose()
})

test('a failed call does not stop those behind it; policies work side by side', async () => {
  const [one, two] = await Promise.all([open(), open()])
  const bad = rejects(one.generate(pack([[99]]), sampling), /tokenIds\[0\] is 99/)
  const [a, b] = await Promise.all([one.generate(prompts, sampling), two.generate(prompts, sampling)])
  await bad
  assert.equal(a, b)
  await Promise.all([one.dispose(), two.dispose()])
})

test('dispose waits for a call in progress; later calls fail; twice is once', async () => {
  const policy = await open()
  const running = policy.generate(prompts, sampling)
  const disposed = policy.dispose()
  let over = false
  const watched = running.then(() => {
    over = true
  })
  await disposed
  assert.ok(over)
  await watched
  await policy.dispose()
  for (const call of [
    () => policy.generate(prompts, sampling),
    () => policy.step(1),
    () => policy.zeroGrad(),
    () => policy.save('/nowhere'),
  ]) {
    await rejects(call(), /the policy was disposed/)
  }

  let scoped: Policy
  {
    await using policy = await open()
    scoped = policy
    await policy.generate(prompts, sampling)
  }
  await rejects(scoped.generate(prompts, sampling), /the policy was disposed/)
})

test('disposed policies give their memory back', async () => {
  // 0.9 M parameters with gradients and moments: 15 MB each.
  for (let i = 0; i < 3; i++) await (await open()).dispose()
  const before = process.memoryUsage().rss
  for (let i = 0; i < 20; i++) await (await open()).dispose()
  const grown = (process.memoryUsage().rss - before) / 2 ** 20
  assert.ok(grown < 100, `${grown} MB`)
})

/** A worker that makes calls of that kind, once it says that it is at them. */
async function startWorker(call: string, out?: string): Promise<{ worker: Worker; done: number }> {
  const worker = new Worker(workerBootstrap, { eval: true, workerData: { dir, call, out } })
  const [done] = await once(worker, 'message')
  return { worker, done }
}

for (const call of ['load', 'generate', 'queue', 'accumulate', 'save']) {
  test(`worker.terminate() during ${call} waits for no call to end, and leaves nothing half-written`, async () => {
    for (let i = 0; i < 3; i++) {
      const out = newDir()
      const { worker } = await startWorker(call, out)
      assert.is(await worker.terminate(), 1)
      for (const file of readdirSync(out)) {
        assert.ok(['config.json', 'model.safetensors', 'state'].includes(file), file)
      }
      if (call === 'save') await (await loadPolicy(out)).dispose()
    }
    const policy = await open()
    assert.is((await policy.generate(prompts, sampling)).finishReasons.length, 4)
    await policy.dispose()
  })
}

test('a worker ends without waiting for the call of another; that call goes on', async () => {
  const running = await startWorker('generate')
  const waiting = await startWorker('load')
  const policy = loadPolicy(dir)
  assert.is(await waiting.worker.terminate(), 1)
  const [later] = await once(running.worker, 'message')
  assert.ok(later > running.done, `${later} > ${running.done}`)
  await running.worker.terminate()
  await (await policy).dispose()
})

const endProcess = (how: string) => {
  const script = fileURLToPath(new URL('../helpers/engine-exit.ts', import.meta.url))
  return spawnSync(process.execPath, ['--import', 'tsx', script, dir, how], { encoding: 'utf8' })
}

test('process.exit() and an uncaught error do not wait for a call to end, also where a worker made it', () => {
  for (const how of ['exit', 'save', 'worker']) {
    const { status, signal, stderr } = endProcess(how)
    assert.is(status, 3, `${how}: ${signal} ${stderr}`)
  }
  assert.equal(readdirSync(dir).sort(), ['config.json', 'model.safetensors'])
  const { status, stderr } = endProcess('throw')
  assert.is(status, 1)
  assert.match(stderr, 'Error: not caught')
})

test('a process lives until its last call is over, and no longer', () => {
  const { status, stdout } = endProcess('nothing')
  assert.is(status, 0)
  assert.is(stdout, 'generated\n')
})

test('worker threads may be the only ones to load the addon, one after the other', async () => {
  const script = fileURLToPath(new URL('../helpers/engine-worker-only.ts', import.meta.url))
  const { OMP_WAIT_POLICY: _, ...env } = process.env
  const run = spawnSync(process.execPath, ['--import', 'tsx', script, await newModel()], {
    encoding: 'utf8',
    env: { ...env, OMP_DISPLAY_ENV: 'verbose' },
  })
  assert.is(run.status, 0, run.stderr)
  assert.match(run.stdout, /all workers ended well/)
  // How long a thread spins before it sleeps: OpenMP waits passively as its own environment asks, of which a worker's
  // process.env is a copy.
  assert.match(run.stderr, /GOMP_SPINCOUNT = '0'/)
})

test.run()
