/** Episodes: who wrote which token, the limits of turns and tokens, and environments that fail. */

import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import type { Problem } from '../../lib/data/problems.js'
import { packTokens } from '../../lib/model/batch.js'
import type { SamplingParams } from '../../lib/model/policy.js'
import { createTemplate } from '../../lib/model/template.js'
import { loadTokenizer } from '../../lib/model/tokenizer.js'
import type { Environment, NamedEnvironment, TurnContext } from '../../lib/reward/environment.js'
import { loadEnvironment } from '../../lib/reward/environments.js'
import type { Sampler } from '../../lib/rollout/engine.js'
import { type EpisodeOptions, rolloutEpisodes } from '../../lib/rollout/episodes.js'
import { rolloutSequence, sampledTokens } from '../../lib/rollout/rollout.js'
import { eosId } from '../../scripts/countdown-tokenizer.js'
import { makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'

const model = makeFakeModel()
const timers: NodeJS.Timeout[] = []
/** Never settles, and keeps the process waiting until the test is over. */
const silence = () => new Promise<never>(() => void timers.push(setTimeout(() => {}, 600_000)))
test.after.each(() => {
  for (const timer of timers.splice(0)) clearTimeout(timer)
})
const tokenizer = loadTokenizer(model)
const template = createTemplate('{prompt}', model)
const ids = (text: string) => tokenizer.encode(text)
const problem = (id: string, answer: unknown = 0): Problem => ({ id, prompt: `${id}:`, answer })
const prompt = (id: string, answer?: unknown) => ({
  problem: problem(id, answer),
  promptIds: ids(/^\d$/.test(id) ? `${id}:` : '0:'),
})

interface Call {
  readonly prompts: string[]
  readonly params: SamplingParams
}

/**
 * Says of each episode, which `next` is given as the text so far, what is written in its next turn: a text that ends with a stop
 * token, unless a ~ at its end says that it is cut off. The log-prob of a token is minus its place in the completion.
 */
function scripted(next: (text: string, sample: number) => string): Sampler & { calls: Call[] } {
  const calls: Call[] = []
  return {
    calls,
    async generate(prompts, params) {
      const texts = Array.from(prompts.offsets.subarray(1), (end, i) =>
        tokenizer.decode(prompts.tokenIds.subarray(prompts.offsets[i], end)),
      )
      calls.push({ prompts: texts, params })
      const completions = texts.flatMap(text =>
        Array.from({ length: params.n }, (_, sample) => {
          const said = next(text, sample)
          const whole = said.endsWith('~') ? ids(said.slice(0, -1)) : [...ids(said), eosId]
          return whole.slice(0, params.maxNewTokens)
        }),
      )
      return {
        tokens: packTokens(completions),
        logprobs: Float32Array.from(completions.flatMap(tokens => tokens.map((_, t) => -t - 1))),
        finishReasons: completions.map(tokens => (tokens.at(-1) === eosId ? 'stop' : 'length')),
        versions: Int32Array.from(completions, () => calls.length),
      }
    },
  }
}

const sampling: SamplingParams = { n: 1, maxNewTokens: 40, stopTokenIds: [eosId], seed: 5 }
const options: EpisodeOptions = { maxTurns: 4 }

const play = (
  environment: object,
  sampler: Sampler,
  prompts = [prompt('1')],
  changes: { sampling?: Partial<SamplingParams>; options?: Partial<EpisodeOptions> } = {},
) =>
  rolloutEpisodes(
    sampler,
    { tokenizer, template, environment: { name: 'test', ...environment } as NamedEnvironment },
    prompts,
    { ...sampling, ...changes.sampling },
    { ...options, ...changes.options },
  )

/** Says "N=" until it has got as many answers as the problem's answer says, then "0". */
const counting: Environment<{ wanted: number; got: number }> = {
  reset: ({ answer }) => ({ wanted: answer as number, got: 0 }),
  step(state, completion) {
    if (completion === '0') return { done: true, reward: state.got, reason: `after ${state.got}` }
    state.got++
    return `${completion}${state.got};`.replace(';', ':')
  },
}
const asks = (times: number) => (text: string) => (text.split('=').length > times * 2 ? '0' : '7=')

test('whose token is whose: ids, masks and log-probs, token by token', async () => {
  const sampler = scripted(asks(2))
  const [rollout] = await play(counting, sampler)
  const { promptIds, completionIds, completionMask, logprobs, turns, verdict, finishReason, version } =
    rollout!
  // A colon of the observation is the environment's: 7=1: and 7=2:
  const expected = [
    ...[...ids('7='), eosId].map((id, t) => [id, 1, -t - 1]),
    ...ids('7=1:').map(id => [id, 0, 0]),
    ...[...ids('7='), eosId].map((id, t) => [id, 1, -t - 1]),
    ...ids('7=2:').map(id => [id, 0, 0]),
    ...[...ids('0'), eosId].map((id, t) => [id, 1, -t - 1]),
  ]
  assert.equal(
    [...completionIds].map((id, t) => [id, completionMask![t], logprobs[t]]),
    expected,
  )
  assert.is(sampledTokens(rollout!), 8)
  assert.equal(turns, [
    { completion: '7=', observation: '7=1:' },
    { completion: '7=', observation: '7=2:' },
    { completion: '0' },
  ])
  assert.equal([rollout!.completion, finishReason, verdict], ['0', 'stop', { reward: 2, reason: 'after 2' }])
  // The oldest of the weights that sampled it.
  assert.is(version, 1)
  const sequence = rolloutSequence(rollout!, { advantage: 0.5, refWeight: 0.25 })
  assert.equal(sequence, {
    tokenIds: [...promptIds, ...completionIds],
    completionMask: [...promptIds.map(() => 0), ...expected.map(([, mask]) => mask)],
    oldLogprobs: [...promptIds.map(() => 0), ...expected.map(([, , logprob]) => logprob)],
    advantage: 0.5,
    refWeight: 0.25,
  })
  // Every turn is asked with all tokens so far.
  assert.equal(
    sampler.calls.map(({ prompts }) => prompts[0]),
    ['1:', '1:7=<eos>7=1:', '1:7=<eos>7=1:7=<eos>7=2:'],
  )
  assert.equal(
    sampler.calls.map(({ params }) => params.turn),
    [1, 2, 3],
  )
  assert.is(new Set(sampler.calls.map(({ params }) => String(params.seed))).size, 3)
})

test('a group: the first turn is the call that completions would be; later ones draw from streams of their own', async () => {
  const sampler = scripted((text, sample) => (text.length > 2 || sample === 1 ? '0' : '7='))
  const prompts = [prompt('1'), prompt('2')]
  const rollouts = await play(counting, sampler, prompts, { sampling: { n: 3 } })
  assert.equal(
    rollouts.map(({ problem, turns }) => `${problem.id} ${turns!.length}`),
    ['1 2', '1 1', '1 2', '2 2', '2 1', '2 2'],
  )
  const [first, second] = sampler.calls
  assert.equal([first!.prompts, first!.params.n, first!.params.seed], [['1:', '2:'], 3, 5])
  assert.equal([second!.prompts.length, second!.params.n], [4, 1])
  const seeds = second!.params.seed as number[]
  assert.is(new Set(seeds).size, 4)
  // An episode draws the same whether the others go on or not.
  const every = scripted(text => (text.length > 2 ? '0' : '7='))
  await play(counting, every, prompts, { sampling: { n: 3 } })
  assert.equal(
    [0, 2, 3, 5].map(i => (every.calls[1]!.params.seed as number[])[i]),
    seeds,
  )
  // With a seed a prompt, an episode does not depend on the other prompts.
  const perPrompt = async (some: typeof prompts, seed: number[]) => {
    const own = scripted(text => (text.length > 2 ? '0' : '7='))
    await play(counting, own, some, { sampling: { n: 3, seed } })
    return own.calls[1]!.params.seed as number[]
  }
  assert.equal((await perPrompt(prompts, [8, 9])).slice(3), await perPrompt([prompts[1]!], [9]))
})

test('the limit of turns: the last one is told, and an episode that is not done gets 0', async () => {
  const told: Omit<TurnContext, 'signal'>[] = []
  const endless: Environment<string> = {
    reset: ({ id }) => id,
    step(_, completion, { signal: _signal, ...context }) {
      told.push(context)
      return `${completion}1:`
    },
  }
  const [rollout] = await play(
    endless,
    scripted(() => '7='),
    [prompt('1')],
    {
      options: { maxTurns: 2 },
    },
  )
  assert.equal(told, [
    { turn: 1, maxTurns: 2, isLast: false, tokensLeft: 37, finishReason: 'stop' },
    { turn: 2, maxTurns: 2, isLast: true, tokensLeft: 30, finishReason: 'stop' },
  ])
  assert.equal(rollout!.verdict, { reward: 0, reason: 'not done after 2 turns' })
  assert.is(rollout!.finishReason, 'length')
  // The last observation is shown, but no token of it is read.
  assert.is(rollout!.turns!.at(-1)!.observation, '7=1:')
  assert.is(rollout!.completionIds.length, 10)
  assert.is(rollout!.completionMask!.at(-1), 1)
})

test('the budget of tokens: completions are cut, observations count, and what does not fit ends the episode', async () => {
  const told: number[] = []
  const endless: Environment<string> = {
    reset: ({ id }) => id,
    step(_, completion, { tokensLeft }) {
      told.push(tokensLeft)
      return `${completion}1:`
    },
  }
  const run = (maxNewTokens: number, maxTurnTokens?: number) =>
    play(
      endless,
      scripted(() => '7='),
      [prompt('1')],
      {
        sampling: { maxNewTokens },
        options: { maxTurns: 9, maxTurnTokens },
      },
    )
  // 3 + 4 + 3 + 4 tokens, and one more that cuts the third completion.
  const [cut] = await run(15)
  assert.equal(cut!.turns!.at(-1), { completion: '7', observation: '71:' })
  assert.equal(cut!.verdict, { reward: 0, reason: 'not done when no token was left' })
  assert.equal([cut!.completionIds.length, sampledTokens(cut!), cut!.finishReason], [15, 7, 'length'])
  assert.equal(told, [12, 5, 0])
  // Behind the second observation no token would be left.
  const [full] = await run(14)
  assert.equal(full!.verdict, {
    reward: 0,
    reason: "not done: the observation's 4 tokens leave none of 4 for a turn",
  })
  assert.equal([full!.completionIds.length, full!.turns!.length, full!.finishReason], [10, 2, 'length'])
  // The limit of one turn.
  const [short] = await run(15, 1)
  assert.equal(
    short!.turns!.map(({ completion }) => completion),
    ['7', '7', '7', '7'],
  )
  assert.ok(short!.completionIds.length <= 15)
})

test('a sampler that ignores the limits of single prompts: what it wrote beyond them is dropped', async () => {
  const wordy: Environment<string> = {
    reset: ({ id }) => id,
    step: (id, completion) =>
      completion === '0' ? { done: true, reward: 1 } : id === '1' ? '1:' : '1111111111:',
  }
  const sampler = scripted(text => (text.length > 2 ? '77777777' : '7='))
  const [, second] = await play(wordy, sampler, [prompt('1'), prompt('2')], {
    sampling: { maxNewTokens: 16 },
    options: { maxTurns: 2 },
  })
  const { maxNewTokens, maxNewTokensPerPrompt } = sampler.calls[1]!.params
  assert.equal([maxNewTokens, maxNewTokensPerPrompt], [11, [11, 2]])
  assert.equal([second!.completionIds.length, second!.completion, second!.finishReason], [16, '77', 'length'])
})

test('an end without a reward is for the verifier', async () => {
  const [rollout] = await play(
    { reset: () => 0, step: () => ({ done: true }) },
    scripted(() => '7'),
  )
  assert.not('verdict' in rollout!)
  assert.is(rollout!.completion, '7')
})

const failure = (work: Promise<unknown>) =>
  work.then(
    () => assert.unreachable('it must fail'),
    (error: RapoError) => {
      assert.instance(error, RapoError)
      return `${error.code}: ${error.message}`
    },
  ) as Promise<string>

test('environments that throw, never answer, or answer nonsense: an error that names the problem', async () => {
  const reset = () => 0
  const stepping = (step: unknown, changes?: Partial<EpisodeOptions>) =>
    failure(
      play(
        { reset, step },
        scripted(() => '7'),
        [prompt('p')],
        { options: { ...changes } },
      ),
    )
  const at = 'ERR_RAPO_INTERNAL: step of the environment test failed on problem "p", turn 1, completion "7": '
  const broken = await stepping(() => {
    throw new Error('no calculator')
  })
  assert.match(broken.replace(at, ''), /^no calculator \(test.rollout.episodes\.test\.ts:\d+:\d+\)$/)
  assert.is(await stepping(() => Promise.reject(undefined)), `${at}undefined`)
  assert.is(
    await stepping(silence, { timeout: 0.01 }),
    `${at}it has not answered within 0.01 seconds (task.timeout)`,
  )
  const wanted =
    ', but it must return a text, or { observation: a text, role: a text }, or { done: true, reward: a number, reason: a text }; role, reward and reason may be left out'
  for (const [result, what] of [
    [undefined, 'its observation is undefined; it returned undefined'],
    [7, 'its observation is undefined; it returned 7'],
    [{ observation: 7 }, 'its observation is 7; it returned { observation: 7 }'],
    [{ observation: 'x', role: 7 }, "its role is 7; it returned { observation: 'x', role: 7 }"],
    [
      { observation: 'x', reward: 1 },
      "it has a reward, but is not done; it returned { observation: 'x', reward: 1 }",
    ],
    [{ done: 1, reward: 1 }, 'its done is 1; it returned { done: 1, reward: 1 }'],
    [{ done: true, reward: NaN }, 'its reward is NaN; it returned { done: true, reward: NaN }'],
    [{ done: true, reward: '1' }, "its reward is '1'; it returned { done: true, reward: '1' }"],
    [{ done: true, reason: 7 }, 'its reason is 7, which is no text; it returned { done: true, reason: 7 }'],
    [
      { done: true, observation: 'x' },
      "it is done and has an observation; it returned { done: true, observation: 'x' }",
    ],
  ] as const) {
    assert.is(await stepping(() => result), `${at}${what}${wanted}`)
  }
  const getter = await stepping(() => ({
    get done() {
      throw new Error('a getter')
    },
  }))
  assert.ok(getter.startsWith(`${at}a getter (`), getter)
  // The tokenizer has no letters.
  assert.match(
    await stepping(() => 'abc'),
    /^ERR_RAPO_DATA: problem "p", observation of turn 1: the tokenizer .* has no token for part of "abc"/,
  )
  const resets = {
    reset: () => {
      throw new Error('no room')
    },
    step: () => '',
  }
  const full = await failure(
    play(
      resets,
      scripted(() => '7'),
      [prompt('p')],
    ),
  )
  assert.match(
    full,
    /^ERR_RAPO_INTERNAL: reset of the environment test failed on problem "p": no room \(.*:\d+:\d+\)$/,
  )
})

test('a promise that nothing is left to settle is told as such', async () => {
  const stuck = { reset: () => 0, step: () => new Promise<never>(() => {}) }
  const message = await failure(
    play(
      stuck,
      scripted(() => '7'),
    ),
  )
  // What told it was the end of the process, which must not come yet.
  await new Promise(resolve => setImmediate(resolve))
  assert.match(message, /problem "1", turn 1, completion "7": its promise can never settle/)
})

test('an answer that comes too late is reward 0 where task.onTimeout says so, and is told by the signal', async () => {
  let signal: AbortSignal | undefined
  const slow: Environment<number> = {
    reset: () => 0,
    step: (_state, _completion, context) => {
      signal = context.signal
      return silence()
    },
  }
  const [rollout] = await play(
    slow,
    scripted(() => '7'),
    [prompt('p')],
    {
      options: { timeout: 0.01, onTimeout: 'zero' },
    },
  )
  assert.equal(rollout!.verdict, { reward: 0, reason: 'no answer within 0.01 seconds' })
  assert.ok(signal!.aborted)
})

test('one failure tells the others by their signals; an abort rejects with its reason', async () => {
  const signals = new Map<string, AbortSignal>()
  const waiting: Environment<string> = {
    reset: ({ id }) => id,
    step(id, _completion, { signal }) {
      signals.set(id, signal)
      if (id === '2') throw new Error('broken')
      return new Promise<never>(() => {})
    },
  }
  const work = play(
    waiting,
    scripted(() => '7'),
    [prompt('1'), prompt('2')],
  )
  assert.match(await failure(work), 'problem "2", turn 1, completion "7": broken')
  assert.ok(signals.get('1')!.aborted)
  const controller = new AbortController()
  const asked = new Promise<void>(resolve => {
    const stuck = play(
      {
        reset: () => 0,
        step: () => {
          resolve()
          return new Promise<never>(() => {})
        },
      },
      scripted(() => '7'),
      [prompt('1')],
      { options: { signal: controller.signal } },
    )
    stuck.catch(error => assert.is(error, controller.signal.reason))
  })
  await asked
  controller.abort()
})

test('progress counts the tokens of all turns and never goes back', async () => {
  const seen: [number, number][] = []
  const inner = scripted(asks(2))
  const sampler: Sampler = {
    generate(prompts, params, callOptions) {
      callOptions?.onProgress?.(1, 0)
      return inner.generate(prompts, params)
    },
  }
  await play(counting, sampler, [prompt('1')], {
    options: { onProgress: (done, total) => void seen.push([done, total]) },
  })
  assert.equal(seen, [
    [1, 40],
    [8, 40],
    [15, 40],
  ])
})

test('turns in a chat template: the tokens of completions stay, what is between comes from the template', () => {
  const dir = makeFakeModel()
  const config = (chat_template: string) =>
    writeFileSync(
      path.join(dir, 'tokenizer_config.json'),
      JSON.stringify({ eos_token: '<eos>', chat_template }),
    )
  config(
    '{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<eos>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}',
  )
  const chat = createTemplate('chat', dir)
  const next = { role: 'tool', content: '12' }
  assert.is(chat.renderNext!(next, true), '\n<tool>12<eos>\n<assistant>')
  // The turn of a completion that was cut off is ended.
  assert.is(chat.renderNext!(next, false), '<eos>\n<tool>12<eos>\n<assistant>')
  assert.is(chat.renderNext!({ role: 'user', content: '1 + 1' }, true), '\n<user>1 + 1<eos>\n<assistant>')
  const boxed = createTemplate('qwen-boxed', dir)
  const turn = '\n<|im_start|>user\n$1<|im_end|>\n<|im_start|>assistant\n'
  assert.is(boxed.renderNext!({ role: 'user', content: '$1' }, true), turn)
  assert.is(boxed.renderNext!({ role: 'user', content: '$1' }, false), `<|im_end|>${turn}`)
  assert.is(createTemplate('abel', dir).renderNext!(next, true), '\n12\n')
  assert.is(createTemplate('Q: {prompt}', dir).renderNext!(next, true), '12')
  // A template that knows no tools says so before anything is trained on.
  config(
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}",
  )
  assert.throws(() => createTemplate('chat', dir).renderNext!(next, true), /does not work: no tools/)
  config(
    "{% for m in messages if m.role == 'user' or m.role == 'assistant' %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}",
  )
  assert.throws(
    () => createTemplate('chat', dir).renderNext!(next, true),
    /cannot continue a conversation with a message of tool/,
  )
})

test('the calculator: a question, a fraction, nonsense, and the answer', async () => {
  const calculator = (await loadEnvironment('countdown-calculator'))!
  const step = (completion: string) =>
    calculator.step(
      calculator.reset(problem('p', { numbers: [3, 4, 9], target: 8 })),
      completion,
      {} as TurnContext,
    )
  assert.is(step('9-3/4='), '33/4:')
  // It calculates with any numbers.
  assert.is(step(' (100 - 101) * 7 = '), '-7:')
  assert.equal(step('1/0='), {
    done: true,
    reward: 0,
    reason: 'the calculator cannot tell: divides by zero',
  })
  assert.equal(step('='), {
    done: true,
    reward: 0,
    reason: 'the calculator cannot tell: expected a number or "(" but found the end at position 1',
  })
  assert.equal(step('9-4+3'), { done: true, reward: 1, reason: 'correct' })
  assert.equal(step('9-4'), { done: true, reward: 0, reason: 'equals 5, not 8' })
  assert.is(calculator.checkAnswer!({ numbers: [1] }), 'answer.target must be a whole number')
})

test('environments by name: built in, modules, and what is none', async () => {
  assert.is(await loadEnvironment(undefined), undefined)
  assert.match(await failure(loadEnvironment('countdown-calculater')), 'did you mean "countdown-calculator"?')
  const file = path.join(makeTempDir(), 'guess.mjs')
  const write = (text: string) => writeFileSync(file, text)
  write(`
    export default { bonus: 2, reset() { return this.bonus }, step: () => '' }
    export const other = { reset: () => 1, step: () => 'x', checkAnswer: () => 'bad' }
    export const half = { reset: () => 1 }
    export const odd = { reset: () => 1, step: () => '', checkAnswer: 1 }
  `)
  const whole = (await loadEnvironment(file))!
  assert.equal([whole.name, await whole.reset(problem('p')), whole.checkAnswer!(1)], ['guess', 2, undefined])
  const other = (await loadEnvironment(`${file}#other`))!
  assert.equal([other.name, other.checkAnswer!(1)], ['other', 'bad'])
  for (const name of ['half', 'odd', 'missing']) {
    assert.match(
      await failure(loadEnvironment(`${file}#${name}`)),
      `ERR_RAPO_CONFIG: task.environment ${file}#${name}: its export ${name} must be an object with the functions reset`,
    )
  }
})

test.run()
