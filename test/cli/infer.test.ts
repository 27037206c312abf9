import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { generateLines, logprobLines } from '../../lib/cli/infer.js'
import type { LoadPolicy } from '../../lib/model/policy.js'
import { loadTokenizer } from '../../lib/model/tokenizer.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'

/** Writes 7 (id 10) or 8 (id 11), then mostly the end (id 1). */
const model = makeFakeModel({ 1: 9, 10: 9, 11: 9 })
const dir = makeTempDir()
const input = path.join(dir, 'in.jsonl')
const output = path.join(dir, 'out.jsonl')
const files = { model, input, output, loadPolicy: loadFakePolicy }
const sampling = { n: 3, maxNewTokens: 4, temperature: 1, topP: 1, topK: 0, minP: 0, seed: 1 }
const tokenizer = loadTokenizer(model)

interface Completion {
  tokenIds: number[]
  logprobs: number[]
  text: string | null
  finishReason: string
}

function give(...lines: unknown[]): void {
  rmSync(output, { force: true })
  writeFileSync(input, lines.map(line => (typeof line === 'string' ? line : JSON.stringify(line))).join('\n'))
}

async function generate(options: object = {}) {
  await generateLines({ ...files, ...options }, sampling)
  const lines = readFileSync(output, 'utf8').trim().split('\n')
  return lines.map(line => JSON.parse(line) as { completions: Completion[]; [name: string]: unknown })
}

async function messageOf(work: Promise<unknown>): Promise<string> {
  try {
    await work
  } catch (error) {
    assert.not(existsSync(output), 'nothing is written')
    return (error as Error).message
  }
  return assert.unreachable('nothing was thrown') as never
}

test('generate adds completions to each line and keeps the rest', async () => {
  give({ prompt: '7=7:', mine: { kept: true } }, { promptIds: [5, 6] })
  const [first, second] = await generate()
  assert.equal(Object.keys(first!), ['prompt', 'mine', 'completions'])
  assert.equal(first!.mine, { kept: true })
  assert.equal(Object.keys(second!), ['promptIds', 'completions'])
  const completions = [...first!.completions, ...second!.completions]
  assert.is(completions.length, 6)
  for (const { tokenIds, logprobs, text, finishReason } of completions) {
    assert.is(logprobs.length, tokenIds.length)
    assert.ok(logprobs.every(value => value <= 0 && Math.fround(value) !== 0))
    const isStopped = tokenIds.at(-1) === 1
    assert.is(finishReason, isStopped ? 'stop' : 'length')
    assert.is(text, tokenizer.decode(isStopped ? tokenIds.slice(0, -1) : tokenIds))
  }
  assert.ok(new Set(completions.map(completion => completion.text)).size > 1)
  assert.equal(await generate(), [first, second])
})

test('logprobs adds one number a completion token, the same that generate gave', async () => {
  give({ prompt: '7=7:' }, { promptIds: [5, 6] })
  const generated = await generate()
  give(
    ...generated.flatMap(({ completions, prompt, promptIds }) =>
      completions.map(({ tokenIds }) => ({
        ...(prompt ? { prompt } : { promptIds }),
        completionIds: tokenIds,
      })),
    ),
    { prompt: '7=7:', completion: '7<eos>' },
    { prompt: '7=7:', completion: '' },
  )
  await logprobLines(files, 1)
  const lines = readFileSync(output, 'utf8').trim().split('\n')
  const scored = lines.map(line => JSON.parse(line) as { logprobs: number[]; entropy: number[] })
  const expected = generated.flatMap(line => line.completions.map(completion => completion.logprobs))
  assert.equal(
    scored.slice(0, 6).map(line => line.logprobs),
    expected,
  )
  assert.is(scored[6]!.logprobs.length, 2)
  assert.equal(Object.keys(scored[6]!), ['prompt', 'completion', 'logprobs', 'entropy'])
  assert.equal([scored[7]!.logprobs, scored[7]!.entropy], [[], []])
  // Three likely tokens of nearly the same probability.
  assert.ok(Math.abs(scored[6]!.entropy[0]! - Math.log(3)) < 0.1)
})

test('prompts: in a template, of a problem file by its usual or a named column, conversations by the chat template', async () => {
  const told: number[][] = []
  const spying: LoadPolicy = async (from, options) => {
    const policy = await loadFakePolicy(from, options)
    return {
      ...policy,
      generate(prompts, ...rest) {
        for (let i = 1; i < prompts.offsets.length; i++)
          told.push([...prompts.tokenIds.slice(prompts.offsets[i - 1], prompts.offsets[i])])
        return policy.generate(prompts, ...rest)
      },
    }
  }
  const rendered = async (rows: object[], options: object = {}, from = model) => {
    told.length = 0
    give(...rows)
    await generate({ loadPolicy: spying, model: from, ...options })
    return told.map(ids => tokenizer.decode(ids))
  }
  assert.equal(await rendered([{ question: '7=7:' }, { promptIds: [5, 6] }], { template: '1 {prompt}2' }), [
    '1 7=7:2',
    tokenizer.decode([5, 6]),
  ])
  assert.equal(await rendered([{ prompt: '1', mine: '2' }], { problemField: 'mine' }), ['2'])
  assert.match(await messageOf(rendered([{ prompt: '1' }], { problemField: 'mine' })), 'has no field "mine"')
  const chat = makeFakeModel({ 1: 9, 10: 9, 11: 9 })
  writeFileSync(
    path.join(chat, 'chat_template.jinja'),
    '{% for message in messages %}{{ message.content }}={% endfor %}',
  )
  const messages = [
    { role: 'system', content: '3' },
    { role: 'user', content: '4' },
  ]
  assert.equal(await rendered([{ prompt: messages }], {}, chat), ['3=4='])
  const wrong = [{ role: 'assistant', content: '3' }]
  assert.match(await messageOf(rendered([{ prompt: wrong }], {}, chat)), 'the last is not the assistant')
  const csv = path.join(dir, 'in.csv')
  writeFileSync(csv, 'prompt,answer\n7=7:,7\n')
  assert.equal(await rendered([], { input: csv }), ['7=7:'])
})

test('many and long lines are scored in several calls, in order', async () => {
  const long = Array.from({ length: 40 }, () => 10)
  give(...Array.from({ length: 1000 }, (_, i) => ({ i, promptIds: [5], completionIds: long.slice(i % 40) })))
  const calls: [number, number][] = []
  await logprobLines({ ...files, onProgress: (...progress) => calls.push(progress) }, 1)
  // 399 lines of 41 tokens are within the 16384 tokens of a call, 400 are not.
  assert.equal(calls, [
    [399, 1000],
    [798, 1000],
    [1000, 1000],
  ])
  const lines = readFileSync(output, 'utf8').trim().split('\n')
  assert.is(lines.length, 1000)
  for (const [i, line] of lines.entries()) {
    const result = JSON.parse(line)
    assert.is(result.i, i)
    assert.is(result.logprobs.length, 40 - (i % 40))
  }
})

test('a model without a tokenizer takes ids, and gives no text', async () => {
  const bare = makeFakeModel({ 10: 9 })
  for (const name of ['tokenizer.json', 'tokenizer_config.json']) rmSync(path.join(bare, name))
  give({ promptIds: [5] })
  const [line] = await generate({ model: bare })
  assert.is(line!.completions[0]!.text, null)
  give({ prompt: '7' })
  assert.match(await messageOf(generate({ model: bare })), 'has no tokenizer.json: give promptIds')
})

test('bad lines: file, line, why, and nothing written', async () => {
  const good = { promptIds: [5] }
  const cases: [unknown, string][] = [
    ['{', `${input}:2: the line is not JSON`],
    [{}, `${input}:2: the row must have promptIds (a list of token ids) or prompt (a text)`],
    [{ promptIds: [] }, 'promptIds must not be empty'],
    [{ promptIds: 'x' }, 'promptIds must be a list of token ids'],
    [{ promptIds: [5, 22] }, 'promptIds[1] is 22; it must be a token id from 0 to 21'],
    [{ promptIds: [-1] }, 'promptIds[0] is -1'],
    [{ promptIds: [1.5] }, 'promptIds[0] is 1.5'],
    [{ promptIds: ['5'] }, 'promptIds[0] is "5"'],
    [{ prompt: '' }, 'prompt must not be empty'],
    [{ prompt: 'x' }, `${input}:2: the tokenizer ${model}/tokenizer.json has no token for part of "x"`],
    [{ promptIds: Array(61).fill(5) }, 'prompt and completion may take 65 tokens'],
  ]
  for (const [line, expected] of cases) {
    give(good, line)
    assert.match(await messageOf(generate()), expected)
  }
  give({ promptIds: [5], completionIds: [5] }, { promptIds: [5] })
  const loadPolicy = async () => assert.unreachable('a model was loaded') as never
  assert.match(
    await messageOf(logprobLines({ ...files, loadPolicy }, 1)),
    ':2: the row must have completionIds',
  )
  give(
    { promptIds: [5], completionIds: Array(63).fill(5) },
    { promptIds: [5, 5], completionIds: Array(63).fill(5) },
  )
  assert.match(await messageOf(logprobLines(files, 1)), ':2: prompt and completion may take 65 tokens')
  give('')
  assert.match(await messageOf(generate()), `${input} is empty`)
})

test('lines are written as they come: what fails late leaves those that there are', async () => {
  const partial = `${output}.partial`
  const many = Array.from({ length: 400 }, (_, i) => ({ i, promptIds: [5, 4 + (i % 8)] }))
  give(...many)
  const whole = await generate()
  assert.is(whole.length, 400)
  assert.not(existsSync(partial))
  rmSync(output)
  let calls = 0
  const failing: LoadPolicy = async (from, options) => {
    const policy = await loadFakePolicy(from, options)
    return {
      ...policy,
      generate(...call) {
        // Those of the call before are there already.
        assert.is(existsSync(partial), calls > 0)
        return ++calls === 3
          ? Promise.reject(new RapoError('ERR_RAPO_INTERNAL', 'stop'))
          : policy.generate(...call)
      },
    }
  }
  // 3 completions a line, 512 a call.
  assert.is(await messageOf(generate({ loadPolicy: failing })), `stop\nkept: 340 lines in ${partial}`)
  assert.equal(
    readFileSync(partial, 'utf8')
      .trim()
      .split('\n')
      .map(line => JSON.parse(line)),
    whole.slice(0, 340),
  )
  // No two calls sample alike.
  const textsOf = (lines: typeof whole) => lines.map(line => line.completions.map(({ text }) => text).join())
  assert.not.equal(textsOf(whole.slice(0, 170)), textsOf(whole.slice(170, 340)))
  await generate()
  assert.not(existsSync(partial))
})

test('a first call as large as all: the seed itself, as ever', async () => {
  const seeds: unknown[] = []
  const spying: LoadPolicy = async (from, options) => {
    const policy = await loadFakePolicy(from, options)
    return {
      ...policy,
      generate(prompts, params, told) {
        seeds.push(params.seed)
        return policy.generate(prompts, params, told)
      },
    }
  }
  give(...Array.from({ length: 171 }, () => ({ promptIds: [5] })))
  await generate({ loadPolicy: spying })
  assert.is(seeds.length, 2)
  assert.is(seeds[0], 1)
  assert.is.not(seeds[1], 1)
})

test("completions end at generation_config.json's tokens, else at config.json's", async () => {
  const two = makeFakeModel({ 1: 9, 10: 9, 11: 9 })
  give(...Array.from({ length: 20 }, () => ({ promptIds: [5] })))
  const stops = async () => {
    const lines = await generate({ model: two })
    const stopped = lines
      .flatMap(line => line.completions)
      .filter(({ finishReason }) => finishReason === 'stop')
    return [...new Set(stopped.map(({ tokenIds }) => tokenIds.at(-1)))]
  }
  rmSync(path.join(two, 'generation_config.json'))
  writeFileSync(path.join(two, 'config.json'), '{"eos_token_id":11}')
  assert.equal(await stops(), [11])
  writeFileSync(path.join(two, 'generation_config.json'), '{"eos_token_id":[10]}')
  assert.equal(await stops(), [10])
  writeFileSync(path.join(two, 'generation_config.json'), '{}')
  assert.equal(await stops(), [11])
})

test.run()
