import { rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../lib/base/errors.js'
import { encodePrompt } from '../lib/data/prompts.js'
import type { ModelInfo } from '../lib/model/policy.js'
import { createTemplate, stopTokenIdsFor } from '../lib/model/template.js'
import { checkTokenizerFits, loadTokenizer, readStopTokenIds } from '../lib/model/tokenizer.js'
import { eosId, vocabSize } from '../scripts/countdown-tokenizer.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from './fake-policy.js'

const model = makeFakeModel()
const tokenizer = loadTokenizer(model)
const { info } = await loadFakePolicy(model)
const problem = { id: 'p1', prompt: '3 5 7=22:', answer: 'x' }
const plain = createTemplate('{prompt}', model)
const context = { tokenizer, template: plain, info, maxNewTokens: 16 }

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
  const { promptIds } = encodePrompt(problem, {
    ...context,
    template: createTemplate('({prompt}', model),
  })
  assert.is(tokenizer.decode(promptIds), '(3 5 7=22:')
  // A prompt with a replacement pattern of String.replace is taken as it is.
  const money = {
    ...context,
    tokenizer: { ...tokenizer, encode: (text: string) => [...text].map(c => c.charCodeAt(0)) },
  }
  assert.is(String.fromCharCode(...encodePrompt({ ...problem, prompt: '$&$1' }, money).promptIds), '$&$1')
})

test('the styles by name, letter for letter', () => {
  const boxed = createTemplate('qwen-boxed', model)
  assert.is(
    boxed.render('What is $1?'),
    '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat is $1?\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n',
  )
  assert.equal(boxed.stop, ['<|im_end|>'])
  assert.is(createTemplate('abel', model).render('1?'), "Question:\n1?\nAnswer:\nLet's think step by step.\n")
  // A name of Object.prototype is a text like any other.
  assert.is(createTemplate('toString', model).render('x'), 'toString')
})

test("chat is the model's own template, from either file", () => {
  const dir = makeFakeModel()
  const write = (name: string, value: unknown) =>
    writeFileSync(path.join(dir, name), typeof value === 'string' ? value : JSON.stringify(value))
  const template =
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m['content'] }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
  const expected = '<s><user>2 {{ + }} 2<eos><assistant>'
  const rest = { bos_token: '<s>', eos_token: { content: '<eos>' } }
  write('tokenizer_config.json', { ...rest, chat_template: template })
  const chat = createTemplate('chat', dir)
  assert.is(chat.render('2 {{ + }} 2'), expected)
  assert.equal(chat.stop, ['<eos>'])
  const named = [
    { name: 'tool_use', template: '' },
    { name: 'default', template },
  ]
  write('tokenizer_config.json', { ...rest, chat_template: named })
  assert.is(createTemplate('chat', dir).render('2 {{ + }} 2'), expected)
  write('tokenizer_config.json', rest)
  write('chat_template.jinja', template)
  assert.is(createTemplate('chat', dir).render('2 {{ + }} 2'), expected)

  const fault = (source: string, message: RegExp) => {
    write('chat_template.jinja', source)
    assert.throws(
      () => createTemplate('chat', dir),
      (error: RapoError) => error.code === 'ERR_RAPO_FORMAT' && message.test(error.message),
    )
  }
  fault('{% for %}', /has a chat template that does not work/)
  fault("{{ raise_exception('no') }}", /has a chat template that does not work: no/)
  fault('hello', /leaves out the user's message/)
  rmSync(path.join(dir, 'chat_template.jinja'))
  assert.throws(() => createTemplate('chat', dir), /has no chat template \(chat_template.jinja/)
})

test('a template brings the tokens that end its turns', () => {
  assert.equal(stopTokenIdsFor(model, tokenizer, plain), [eosId])
  assert.equal(stopTokenIdsFor(model, tokenizer, { ...plain, stop: ['<eos>', '<unk>'] }), [eosId, 2])
  assert.throws(
    () => stopTokenIdsFor(model, tokenizer, createTemplate('qwen-boxed', model)),
    /has no token <\|im_end\|>, which ends a completion/,
  )
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
