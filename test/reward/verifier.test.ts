/** What a verifier is given, what it may return, and how a module may export it. */
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { digest } from '../../lib/base/random.js'
import { createCursor } from '../../lib/data/cursor.js'
import { readProblems } from '../../lib/data/problems.js'
import { loadVerifier } from '../../lib/reward/load.js'
import { judge, type Verifier, type VerifyContext } from '../../lib/reward/verifier.js'
import { type Rollout, score } from '../../lib/rollout/rollout.js'
import { makeTempDir } from '../helpers/fake-policy.js'

const dir = makeTempDir()
const module_ = (name: string, text: string) => {
  const file = path.join(dir, name)
  writeFileSync(file, text)
  return file
}
const messageOf = (work: Promise<unknown>) =>
  work.then(
    () => '',
    error => (error as Error).message,
  )

test('a number, a reward with a reason, or a reward alone are verdicts', async () => {
  assert.equal(await judge(() => 0.5, 'p'), { reward: 0.5, reason: '' })
  assert.equal(await judge(async () => -1, 'p'), { reward: -1, reason: '' })
  assert.equal(await judge(() => ({ reward: 1 }), 'p'), { reward: 1, reason: '' })
  assert.equal(await judge(() => ({ reward: 1, reason: undefined }), 'p'), { reward: 1, reason: '' })
  assert.equal(await judge(() => ({ reward: 1, reason: 'right' }), 'p'), { reward: 1, reason: 'right' })
})

test('anything else is refused with what is wanted, and what was judged', async () => {
  const wanted = 'it must return a number, or { reward: a number, reason: a text, which may be left out }'
  for (const [result, what] of [
    [undefined, 'its reward is undefined; it returned undefined, but'],
    [null, 'its reward is undefined; it returned null, but'],
    [true, 'its reward is undefined; it returned true, but'],
    ['1', "its reward is undefined; it returned '1', but"],
    [[1], 'its reward is undefined; it returned [ 1 ], but'],
    [{ score: 1 }, 'its reward is undefined; it returned { score: 1 }, but'],
    [{ reward: '1' }, "its reward is '1'; it returned { reward: '1' }, but"],
    [{ reward: true }, 'its reward is true; it returned { reward: true }, but'],
    [Number.NaN, 'its reward is NaN; it returned NaN, but'],
    [{ reward: Infinity }, 'its reward is Infinity; it returned { reward: Infinity }, but'],
    [{ reward: 1, reason: 7 }, 'its reason is 7, which is no text;'],
    [{ reward: 1, reason: null }, 'its reason is null, which is no text;'],
  ] as const) {
    assert.is(
      await messageOf(judge(() => result as never, 'problem "p"')),
      `the verifier failed on problem "p": ${what} ${wanted}`,
    )
  }
})

test('a module exports a verifier, one without checkAnswer, or a function', async () => {
  const whole = await loadVerifier(
    module_('whole.mjs', "export default { checkAnswer: () => 'no', verify: () => 1 }"),
  )
  assert.is(whole.checkAnswer('x'), 'no')
  const half = await loadVerifier(
    module_('half.mjs', 'export default { bonus: 2, verify() { return this.bonus } }'),
  )
  assert.is(half.checkAnswer('x'), undefined)
  const context = { id: 'p', prompt: '', columns: {} }
  assert.is(half.verify('c', 'a', context), 2)
  const alone = await loadVerifier(
    module_('alone.mjs', 'export default (completion, answer, { id }) => completion + answer + id'),
  )
  assert.is(alone.checkAnswer('x'), undefined)
  assert.is(alone.verify('c', 'a', context), 'cap')
  for (const [name, text] of [
    ['none.mjs', 'export const verify = () => 1'],
    ['number.mjs', 'export default 1'],
    ['broken.mjs', 'export default { checkAnswer: 1, verify: () => 1 }'],
  ] as const) {
    assert.match(
      await messageOf(loadVerifier(module_(name, text))),
      /its default export must be a function \(completion, answer, context\) that returns a reward, or an object/,
    )
  }
})

test('the context: prompt, messages, id, the other columns, and how the completion was sampled', async () => {
  const file = module_(
    'problems.jsonl',
    [
      { id: 'a', prompt: 'one', answer: '1', difficulty: 'easy', tests: ['t'], 'source.url': 'u' },
      {
        prompt: [
          { role: 'system', content: 's' },
          { role: 'user', content: 'two' },
        ],
        reward_model: { ground_truth: '2', style: 'rule' },
        answer: null,
      },
    ]
      .map(row => JSON.stringify(row))
      .join('\n'),
  )
  const seen: (VerifyContext & { answer: unknown })[] = []
  const verifier: Verifier = {
    checkAnswer: () => undefined,
    verify(_, answer, context) {
      seen.push({ answer, ...context })
      return 1
    },
  }
  const problems = await readProblems(file, verifier, { dropUnusable: true })
  const rollouts = problems.map(
    (problem): Rollout => ({
      problem,
      promptIds: [1],
      completionIds: Int32Array.of(5, 6),
      logprobs: Float32Array.of(-1, -1),
      finishReason: 'length',
      completion: 'c',
    }),
  )
  await score(rollouts, verifier, { maxNewTokens: 2 })
  assert.equal(seen[0], {
    answer: '1',
    id: 'a',
    prompt: 'one',
    columns: { tests: ['t'], 'source.url': 'u' },
    tokens: 2,
    finishReason: 'length',
    maxNewTokens: 2,
  })
  // The column that holds the answer has other entries: it is there whole.
  const nested = await readProblems(file, verifier, {
    dropUnusable: true,
    answerField: 'reward_model.ground_truth',
  })
  assert.equal(nested[0]!.columns, { reward_model: { ground_truth: '2', style: 'rule' }, answer: null })
  assert.equal(nested[0]!.messages?.length, 2)
  assert.is(nested[0]!.prompt, 'two')
})

test('other columns: a state of before is taken up, a changed column is noticed', () => {
  const plain = [{ id: 'a', prompt: 'p', answer: 1 }]
  const withColumns = (tests: string) => [{ ...plain[0]!, columns: { tests } }]
  const before = createCursor(plain, 1).state()
  assert.not('columnsFingerprint' in before)
  // As versions made it that did not read other columns.
  assert.is(before.fingerprint, digest([1, plain]))
  createCursor(withColumns('t'), 1, before)
  const now = createCursor(withColumns('t'), 1).state()
  assert.is(now.fingerprint, before.fingerprint)
  createCursor(withColumns('t'), 1, now)
  assert.throws(() => createCursor(withColumns('u'), 1, now), /are not those that the checkpoint was made/)
  assert.throws(() => createCursor(plain, 1, now), /are not those that the checkpoint was made/)
})

test('the example of docs/rewards.md is a verifier', async () => {
  const page = readFileSync('docs/rewards.md', 'utf8')
  const code = /```ts\n(.*?)```/s.exec(page)![1]!
  const verifier = await loadVerifier(module_('example.ts', code))
  const context = { id: 'p', prompt: 'p', columns: { source: 'a book' } }
  const judged = (completion: string) => judge(() => verifier.verify(completion, 7, context), 'p')
  assert.equal(await judged('it is 7'), {
    reward: 1,
    reason: 'right, in 3 words; the problem is from a book',
  })
  assert.is((await judged('it is 8')).reward, 0)
})

test.run()
