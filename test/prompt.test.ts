import { rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../lib/errors.js'
import type { ModelInfo } from '../lib/policy.js'
import { checkTokenizerFits, encodePrompt, loadTokenizer, readStopTokenIds } from '../lib/prompt.js'
import { eosId, vocabSize } from '../scripts/countdown-tokenizer.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from './fake-policy.js'

const model = makeFakeModel()
const tokenizer = loadTokenizer(model)
const { info } = await loadFakePolicy(model)
const problem = { id: 'p1', prompt: '3 5 7=22:', answer: 'x' }
const context = { tokenizer, template: '{prompt}', info, maxNewTokens: 16 }

test('text to ids and back, special tokens and spaces included', () => {
  const text = '10 2=5:(10/2) - 0<eos><pad>'
  const ids = tokenizer.encode(text)
  assert.is(ids.length, 19)
  assert.is(ids.at(-2), eosId)
  assert.is(tokenizer.decode(ids), text)
  assert.is(tokenizer.decode(Int32Array.from(ids)), text)
  assert.is(tokenizer.decode([]), '')
  assert.is(tokenizer.maxId, vocabSize - 1)
})

test('a character that the tokenizer does not know is an error, not a gap', () => {
  assert.throws(() => tokenizer.encode('3 x 5'), /has no token for part of "3 x 5" \(after 2 tokens: "3 "\)/)
  assert.throws(() => encodePrompt({ ...problem, prompt: '3€' }, context), /^problem "p1": the tokenizer/)
})

test('the template surrounds the prompt', () => {
  const { promptIds } = encodePrompt(problem, { ...context, template: '({prompt}' })
  assert.is(tokenizer.decode(promptIds), '(3 5 7=22:')
  // A prompt with a replacement pattern of String.replace is taken as it is.
  const money = {
    ...context,
    tokenizer: { ...tokenizer, encode: (text: string) => [...text].map(c => c.charCodeAt(0)) },
  }
  assert.is(String.fromCharCode(...encodePrompt({ ...problem, prompt: '$&$1' }, money).promptIds), '$&$1')
})

test('a prompt longer than the context names the problem', () => {
  const long = { ...problem, prompt: '1'.repeat(49) }
  assert.throws(
    () => encodePrompt(long, context),
    /problem "p1": its prompt of 49 tokens and sampling.maxNewTokens 16 exceed the model's context of 64/,
  )
  assert.is(encodePrompt({ ...problem, prompt: '1'.repeat(48) }, context).promptIds.length, 48)
})

test('a tokenizer that does not fit the model', () => {
  checkTokenizerFits(tokenizer, info, model)
  const small: ModelInfo = { ...info, vocabSize: vocabSize - 1 }
  assert.throws(
    () => checkTokenizerFits(tokenizer, small, model),
    /does not fit the model: it has the token id 21, the model's vocabulary ends at 20/,
  )
})

test('a tokenizer that is missing or broken', () => {
  const dir = makeTempDir()
  const code = (body: () => unknown) => {
    try {
      body()
    } catch (error) {
      return error instanceof RapoError ? error.code : String(error)
    }
    return 'nothing'
  }
  assert.is(
    code(() => loadTokenizer(dir)),
    'ERR_RAPO_FORMAT',
  )
  for (const text of ['', '{', '[]', '{}', '{"model":{"type":"none"}}']) {
    writeFileSync(path.join(dir, 'tokenizer.json'), text)
    assert.is(
      code(() => loadTokenizer(dir)),
      'ERR_RAPO_FORMAT',
      text,
    )
  }
})

test('what ends a completion: generation_config.json, else config.json, else the tokenizer', () => {
  const dir = makeFakeModel()
  const write = (name: string, value: object) => writeFileSync(path.join(dir, name), JSON.stringify(value))
  assert.equal(readStopTokenIds(dir), [1])
  write('generation_config.json', { eos_token_id: [3, 4] })
  assert.equal(readStopTokenIds(dir), [3, 4])
  write('config.json', { eos_token_id: 5 })
  write('generation_config.json', { eos_token_id: null })
  assert.equal(readStopTokenIds(dir), [5])
  rmSync(path.join(dir, 'config.json'))
  assert.equal(readStopTokenIds(dir), [1])
  write('tokenizer_config.json', { eos_token: { content: '<unk>' } })
  assert.equal(readStopTokenIds(dir), [2])
  write('tokenizer_config.json', {})
  assert.equal(readStopTokenIds(dir), [])
})

test.run()
