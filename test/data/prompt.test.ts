import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { encodePrompt, fitContext, templateFor } from '../../lib/data/prompts.js'
import type { ModelInfo } from '../../lib/model/policy.js'
import { createTemplate, stopTokenIdsFor } from '../../lib/model/template.js'
import { checkTokenizerFits, loadTokenizer, readStopTokenIds } from '../../lib/model/tokenizer.js'
import { eosId, vocabSize } from '../../scripts/countdown-tokenizer.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'

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

test('a tokenizer that drops or changes characters is an error; spaces, case and composed forms are not', () => {
  const dir = makeFakeModel()
  const file = path.join(dir, 'tokenizer.json')
  const read = () => JSON.parse(readFileSync(file, 'utf8'))
  const own = read()
  const withNormalizer = (normalizer: object) => {
    writeFileSync(file, JSON.stringify({ ...own, normalizer }))
    return loadTokenizer(dir)
  }
  const replace = (from: string, to: string) => ({ type: 'Replace', pattern: { String: from }, content: to })
  assert.throws(
    () => withNormalizer(replace('5', '')).encode('3 5 7'),
    (error: RapoError) =>
      error.code === 'ERR_RAPO_DATA' &&
      /drops or changes characters: "3 5 7" reads back as "3 +7"$/.test(error.message),
  )
  assert.throws(() => withNormalizer(replace('5', '6')).encode('3 5 7'), /"3 5 7" reads back as "3 6 7"$/)
  assert.is(withNormalizer(replace(' ', '')).encode('3 5 7').length, 3)
  assert.equal(withNormalizer({ type: 'NFKC' }).encode('３ 5'), tokenizer.encode('3 5'))
})

test('a byte-level tokenizer keeps every character', () => {
  const dir = makeTempDir()
  // The alphabet of bytes, as GPT-2 writes them: printable ones as themselves, the others from U+0100 on.
  const isPrintable = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte !== 173)
  let next = 256
  const alphabet = Array.from({ length: 256 }, (_, byte) =>
    String.fromCodePoint(isPrintable(byte) ? byte : next++),
  )
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: true }
  const content = {
    ...{ version: '1.0', truncation: null, padding: null, added_tokens: [], normalizer: { type: 'NFC' } },
    ...{ pre_tokenizer: byteLevel, decoder: byteLevel, post_processor: null },
    model: {
      ...{ type: 'BPE', dropout: null, unk_token: null, byte_fallback: false, merges: [] },
      vocab: Object.fromEntries(alphabet.map((letter, id) => [letter, id])),
    },
  }
  writeFileSync(path.join(dir, 'tokenizer.json'), JSON.stringify(content))
  const bytes = loadTokenizer(dir)
  const text = 'Was ist ½ + 中文 🙂?\n\te\u0301 A<b>'
  assert.is(bytes.decode(bytes.encode(text)), text.normalize('NFC'))
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

test('an end-of-sequence id beyond the vocabulary names its file; -1 is none', () => {
  const dir = makeFakeModel()
  const write = (name: string, value: object) => writeFileSync(path.join(dir, name), JSON.stringify(value))
  write('config.json', { vocab_size: vocabSize, eos_token_id: 1 })
  write('generation_config.json', { eos_token_id: [1, 40000] })
  assert.throws(
    () => readStopTokenIds(dir),
    new RegExp(
      `generation_config.json: eos_token_id has 40000, outside the model's vocabulary of ${vocabSize} tokens`,
    ),
  )
  write('generation_config.json', { eos_token_id: vocabSize - 1 })
  assert.equal(readStopTokenIds(dir), [vocabSize - 1])
  write('generation_config.json', { eos_token_id: vocabSize })
  assert.throws(() => readStopTokenIds(dir), /outside the model's vocabulary/)
  write('generation_config.json', { eos_token_id: [-1, 3] })
  assert.equal(readStopTokenIds(dir), [3])
  write('generation_config.json', { eos_token_id: -1 })
  assert.equal(readStopTokenIds(dir), [1])
})

test('a model for which nothing ends a completion is refused', () => {
  const dir = makeFakeModel()
  for (const name of ['config.json', 'generation_config.json', 'tokenizer_config.json'])
    writeFileSync(path.join(dir, name), '{}')
  assert.throws(
    () => stopTokenIdsFor(dir, tokenizer, plain),
    /nothing ends a completion of the model in .* Set eos_token_id in generation_config.json to the id .*, such as 1 \(<eos>\)$/,
  )
  assert.equal(stopTokenIdsFor(dir, tokenizer, { ...plain, stop: ['<eos>'] }), [eosId])
})

/** A model directory with a chat template, and the special tokens of tokenizer.json that it names. */
function chatModel(template: string, config: object = {}, special: readonly string[] = []): string {
  const dir = makeFakeModel()
  const file = path.join(dir, 'tokenizer.json')
  const tokenizer = JSON.parse(readFileSync(file, 'utf8'))
  const added = special.map((content, i) => ({ id: vocabSize + i, content, special: true }))
  writeFileSync(file, JSON.stringify({ ...tokenizer, added_tokens: [...tokenizer.added_tokens, ...added] }))
  writeFileSync(
    path.join(dir, 'tokenizer_config.json'),
    JSON.stringify({ ...config, chat_template: template }),
  )
  return dir
}

const chatml =
  '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'

test("the special token behind an assistant's message ends a completion, too", () => {
  const tokens = ['<|im_start|>', '<|im_end|>']
  const dir = chatModel(chatml, { eos_token: '<eos>' }, tokens)
  assert.equal(createTemplate('chat', dir).stop, ['<eos>', '<|im_end|>'])
  const bare = chatModel('{{ messages[-1].content }}<|im_end|>', { eos_token: '<eos>' }, tokens)
  assert.equal(createTemplate('chat', bare).stop, ['<eos>', '<|im_end|>'])
  // A text that is no special token does not.
  assert.equal(createTemplate('chat', chatModel(chatml, { eos_token: '<eos>' }, ['<|im_start|>'])).stop, [
    '<eos>',
  ])
})

test("a chat template gets transformers' variables", () => {
  const template =
    '{% for m in messages %}{{ pad_token }}[{{ m.role }}]{{ m.content }}{{ unk_token }}{% endfor %}{{ additional_special_tokens[0] }}{% if tools is none and documents is none %}none{% endif %}'
  const config = {
    pad_token: '<pad>',
    unk_token: { content: '<unk>' },
    additional_special_tokens: ['<more>'],
  }
  assert.is(createTemplate('chat', chatModel(template, config)).render('x'), '<pad>[user]x<unk><more>none')
})

test('a template that loses the message to {% break %} says so', () => {
  const template =
    '{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if loop.last %}<end>{% break %}{% endif %}{% endfor %}'
  assert.throws(
    () => createTemplate('chat', chatModel(template)),
    /leaves out the user's message \(\{% break %\} may be the cause/,
  )
})

test('conversations go through the chat template, system messages kept', () => {
  const dir = chatModel(chatml)
  const conversation = [
    { role: 'system', content: 'S' },
    { role: 'user', content: 'U' },
  ]
  const expected = '<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n'
  assert.is(createTemplate('chat', dir).render(conversation), expected)
  assert.is(createTemplate('{prompt}', dir, { hasConversations: true }).render(conversation), expected)
  // The configuration's system message stands before what has none.
  const withSystem = createTemplate('chat', dir, { systemPrompt: 'S' })
  assert.is(withSystem.render('U'), expected)
  assert.is(withSystem.render(conversation), expected)
  // Other templates take the text of a single user's message.
  const style = createTemplate('Q: {prompt}', dir, { hasConversations: true })
  assert.is(style.render([{ role: 'user', content: 'U' }]), 'Q: U')
  assert.throws(
    () => style.render(conversation),
    /has the messages system, user, which only data.template: chat can render/,
  )
  const problems = [{ ...problem, messages: conversation }]
  assert.is(templateFor(problems, { template: '{prompt}' }, dir).render(conversation), expected)
  assert.throws(
    () => templateFor(problems, { template: '{prompt}' }, model),
    /^the prompts are lists of messages, but .* has no chat template/,
  )
})

test('chatTemplateArguments are variables of the chat template', () => {
  const dir = chatModel(
    `${chatml}{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}`,
  )
  const thinking = '<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n'
  const of = (chatTemplateArguments?: Record<string, unknown>) =>
    templateFor([problem], { template: 'chat', ...(chatTemplateArguments && { chatTemplateArguments }) }, dir)
  assert.is(of().render('U'), thinking)
  assert.is(of({ enable_thinking: true }).render('U'), thinking)
  assert.is(of({ enable_thinking: false }).render('U'), `${thinking}<think></think>`)
  assert.throws(() => of({ messages: [] }), /^chatTemplateArguments may not set messages$/)
})

test('a fault of the template is none of the data: it is not dropped with unusable problems', () => {
  const failing = {
    ...plain,
    render: () => {
      throw new RapoError('ERR_RAPO_FORMAT', 'the template fails')
    },
  }
  assert.throws(
    () => fitContext([problem], model, { ...context, template: failing }, { dropUnusable: true }),
    (error: RapoError) => error.code === 'ERR_RAPO_FORMAT' && /the template fails/.test(error.message),
  )
})

test('the token 0 may end a completion', () => {
  const dir = makeFakeModel()
  writeFileSync(path.join(dir, 'generation_config.json'), JSON.stringify({ eos_token_id: 0 }))
  assert.equal(readStopTokenIds(dir), [0])
})

test.run()
