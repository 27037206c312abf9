/** Files that are not what they should be: each error names the file, and the tensor or field. */
import { execFileSync } from 'node:child_process'
import {
  copyFileSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { initializeModel, loadPolicy } from '../../lib/model/engine.js'
import {
  newDir,
  newModel,
  readSafetensors,
  rejects,
  type StoredTensor,
  tinyConfig,
  writeSafetensors,
} from '../helpers/engine-util.js'

const dir = await newModel()
const weights = 'model.safetensors'
const original = readFileSync(path.join(dir, weights))
const load = (from: string) => loadPolicy(from, { trainable: false })

/** A copy of the model with another file of weights. */
function withWeights(write: (file: string) => void): string {
  const copy = newDir()
  copyFileSync(path.join(dir, 'config.json'), path.join(copy, 'config.json'))
  write(path.join(copy, weights))
  return copy
}

type Header = Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>

function split(): { header: Header; data: Buffer } {
  const length = Number(original.readBigUInt64LE(0))
  return { header: JSON.parse(original.toString('utf8', 8, 8 + length)), data: original.subarray(8 + length) }
}

const name = 'model.layers.1.mlp.down_proj.weight'
const withHeader = (change: (header: Header, data: Buffer) => unknown) =>
  withWeights(file => {
    const { header, data } = split()
    const changed = change(header, data)
    writeSafetensors(
      file,
      typeof changed === 'string' ? changed : header,
      Buffer.isBuffer(changed) ? changed : data,
    )
  })

const formatErrors: Record<string, [() => string, RegExp]> = {
  'an empty file': [() => withWeights(file => writeFileSync(file, '')), /0 bytes are too few/],
  'seven bytes': [() => withWeights(file => writeFileSync(file, '1234567')), /7 bytes are too few/],
  'a header longer than the file': [
    () =>
      withWeights(file =>
        writeFileSync(file, Buffer.concat([Buffer.from([255, 255, 0, 0, 0, 0, 0, 0]), Buffer.from('{}')])),
      ),
    /the header claims 65535 bytes, the file has 10/,
  ],
  'a header length beyond any file': [
    () => withWeights(file => writeFileSync(file, Buffer.alloc(64, 255))),
    /the header claims 18446744073709551615 bytes/,
  ],
  'a file cut off in its data': [
    () =>
      withWeights(file => {
        writeFileSync(file, original)
        truncateSync(file, original.length - 100)
      }),
    /tensor "model.norm.weight" has data_offsets outside .*cut off/,
  ],
  'a file cut off in its header': [
    () => withWeights(file => writeFileSync(file, original.subarray(0, 200))),
    /the header claims \d+ bytes, the file has 200/,
  ],
  'bytes behind the last tensor': [
    () => withWeights(file => writeFileSync(file, Buffer.concat([original, Buffer.from('more')]))),
    /4 bytes after the last tensor/,
  ],
  'a header that is not JSON': [() => withHeader(() => '{"a":'), /header\): not valid JSON at byte 5/],
  'a header with a key twice': [() => withHeader(() => '{"a":1,"a":2}'), /the key "a" appears twice/],
  'a header of invalid UTF-8': [
    () =>
      withWeights(file =>
        writeFileSync(
          file,
          Buffer.concat([Buffer.from([6, 0, 0, 0, 0, 0, 0, 0]), Buffer.from('7b22ff223a31', 'hex')]),
        ),
      ),
    /invalid UTF-8/,
  ],
  'a header nested without end': [
    () => withHeader(() => `{"a":${'['.repeat(100000)}`),
    /nested deeper than 64/,
  ],
  'a header that is an array': [() => withHeader(() => '[]'), /does not begin with '\{'/],
  'an entry without a dtype': [
    () => withHeader(header => delete (header[name] as { dtype?: string }).dtype),
    new RegExp(`tensor "${name}" lacks`),
  ],
  'an unknown dtype': [
    () =>
      withHeader(header => {
        header[name]!.dtype = 'F33'
      }),
    new RegExp(`tensor "${name}" has the unknown dtype "F33"`),
  ],
  'a negative size': [
    () =>
      withHeader(header => {
        header[name]!.shape = [-1, 4]
      }),
    new RegExp(`tensor "${name}" has a shape`),
  ],
  'a fractional size': [
    () =>
      withHeader(header => {
        header[name]!.shape = [0.5, 4]
      }),
    new RegExp(`tensor "${name}" has a shape`),
  ],
  'a shape whose product overflows': [
    () =>
      withHeader(header => {
        header[name]!.shape = [2 ** 40, 2 ** 40]
      }),
    new RegExp(`tensor "${name}" has a shape whose size overflows`),
  ],
  'a shape that does not fit its bytes': [
    () =>
      withHeader(header => {
        header[name]!.shape[0]! -= 1
      }),
    new RegExp(`tensor "${name}" has \\d+ bytes where its shape and dtype need \\d+`),
  ],
  'offsets that run backwards': [
    () => withHeader(header => header[name]!.data_offsets.reverse()),
    new RegExp(`tensor "${name}" has data_offsets outside`),
  ],
  'overlapping tensors': [
    () =>
      withHeader(header => {
        header['model.norm.weight']!.data_offsets = [0, 128]
      }),
    /two tensors overlap at data byte 0/,
  ],
  'a hole between tensors': [() => withHeader(header => delete header[name]), /a hole at data byte \d+/],
  'metadata that is not text': [
    () =>
      withHeader(header => {
        ;(header as Record<string, unknown>).__metadata__ = { format: 1 }
      }),
    /metadata "format" is not a string/,
  ],
  // Whole files that are another model's.
  'a misshapen tensor': [
    () =>
      withHeader(header => {
        header[name]!.shape.reverse()
      }),
    new RegExp(`tensor "${name}" has the shape \\[48, 32\\], config.json asks for \\[32, 48\\]`),
  ],
  'a missing tensor': [
    () => rewritten(tensors => tensors.delete(name)),
    new RegExp(`tensor "${name}" is missing`),
  ],
  'an extra tensor': [
    () => rewritten(tensors => tensors.set('model.layers.2.mlp.down_proj.weight', tensors.get(name)!)),
    /tensor "model.layers.2.mlp.down_proj.weight" does not belong to the model that config.json describes/,
  ],
  'a head that differs from tied embeddings': [
    () =>
      rewritten(tensors =>
        tensors.set('lm_head.weight', changedBytes(tensors.get('model.embed_tokens.weight')!)),
      ),
    /"lm_head.weight" differs from model.embed_tokens.weight/,
  ],
}

function changedBytes(tensor: StoredTensor): StoredTensor {
  const bytes = Buffer.from(tensor.bytes)
  bytes[5]! ^= 1
  return { ...tensor, bytes }
}

function write(file: string, tensors: Map<string, StoredTensor>, padding = ''): void {
  let offset = 0
  const header: Header = {}
  for (const [key, { dtype, shape, bytes }] of tensors) {
    header[key] = { dtype, shape, data_offsets: [offset, offset + bytes.length] }
    offset += bytes.length
  }
  writeSafetensors(
    file,
    JSON.stringify(header) + padding,
    Buffer.concat([...tensors.values()].map(t => t.bytes)),
  )
}

function rewritten(change: (tensors: Map<string, StoredTensor>) => unknown, padding = ''): string {
  return withWeights(file => {
    const tensors = readSafetensors(path.join(dir, weights))
    change(tensors)
    write(file, tensors, padding)
  })
}

for (const [what, [make, message]] of Object.entries(formatErrors)) {
  test(`weights: ${what}`, async () => {
    const broken = make()
    const file = path.join(broken, weights).replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&')
    await rejects(load(broken), new RegExp(`^${file}.*${message.source}`), 'ERR_RAPO_FORMAT')
  })
}

test('a character and its escape are the same, in every length of UTF-8 and at its bounds', async () => {
  for (const code of [0x20, 0x7f, 0x80, 0x7ff, 0x800, 0xd7ff, 0xe000, 0xffff, 0x10000, 0x10ffff]) {
    const character = String.fromCodePoint(code)
    const escaped = Array.from(
      { length: character.length },
      (_, i) => `\\u${character.charCodeAt(i).toString(16).padStart(4, '0')}`,
    ).join('')
    const broken = withHeader(() => `{"${character}":1,"${escaped}":2}`)
    await rejects(load(broken), new RegExp(`the key "${character}" appears twice`), 'ERR_RAPO_FORMAT')
  }
})

test('weights: an unsupported dtype, no file, a directory', async () => {
  const integers = rewritten(tensors => tensors.set(name, { ...tensors.get(name)!, dtype: 'I32' }))
  await rejects(
    load(integers),
    new RegExp(`"${name}" has the dtype I32, as quantised models have; F64, F32, BF16 and F16`),
    'ERR_RAPO_UNSUPPORTED',
  )
  const none = withWeights(() => {})
  await rejects(load(none), /^\S+ has no model.safetensors$/, 'ERR_RAPO_FORMAT')
  await rejects(load(path.join(none, 'nowhere')), /there is no directory .*nowhere$/, 'ERR_RAPO_IO')
})

test('weights: any order, unaligned data, a repeated tied head and shards load alike', async () => {
  const expected = await saved(dir)
  const shuffled = rewritten(tensors => {
    const entries = [...tensors].reverse()
    tensors.clear()
    for (const [key, tensor] of entries) tensors.set(key, tensor)
  })
  assert.equal(await saved(shuffled), expected)
  for (const padding of ['', ' ', '  ', '   '])
    assert.equal(await saved(rewritten(() => {}, padding)), expected)
  assert.equal(
    await saved(
      rewritten(tensors => tensors.set('lm_head.weight', tensors.get('model.embed_tokens.weight')!)),
    ),
    expected,
  )
  assert.equal(await saved(sharded()), expected)
})

async function saved(from: string): Promise<Buffer> {
  const policy = await load(from)
  const out = newDir()
  await policy.save(out)
  await policy.dispose()
  return readFileSync(path.join(out, weights))
}

function sharded(
  change: (index: { weight_map: Record<string, string> }, copy: string) => void = () => {},
): string {
  const copy = withWeights(() => {})
  const tensors = [...readSafetensors(path.join(dir, weights))]
  const index = { metadata: {}, weight_map: {} as Record<string, string> }
  for (const [i, part] of [tensors.slice(0, 5), tensors.slice(5)].entries()) {
    const shard = `model-0000${i + 1}-of-00002.safetensors`
    write(path.join(copy, shard), new Map(part))
    for (const [key] of part) index.weight_map[key] = shard
  }
  change(index, copy)
  writeFileSync(path.join(copy, 'model.safetensors.index.json'), JSON.stringify(index))
  return copy
}

test('shards: missing, misplaced, outside the directory', async () => {
  const missing = sharded((_, copy) => rmSync(path.join(copy, 'model-00002-of-00002.safetensors')))
  await rejects(load(missing), /cannot open .*model-00002-of-00002.safetensors/, 'ERR_RAPO_IO')
  const misplaced = sharded(index => {
    index.weight_map[name] = 'model-00001-of-00002.safetensors'
  })
  await rejects(load(misplaced), /index.json: tensor ".*" is not in model-00001/, 'ERR_RAPO_FORMAT')
  const unlisted = sharded(index => delete index.weight_map[name])
  await rejects(load(unlisted), new RegExp(`tensor "${name}" is not in the index`), 'ERR_RAPO_FORMAT')
  const outside = sharded(index => {
    index.weight_map[name] = '../model.safetensors'
  })
  await rejects(load(outside), /is not mapped to a file of this directory/, 'ERR_RAPO_FORMAT')
})

test('save writes shards of the size asked for with their index, and the other form goes', async () => {
  for (const tied of [true, false]) {
    const policy = await load(await newModel({ tie_word_embeddings: tied }))
    const [whole, out] = [newDir(), newDir()]
    await policy.save(whole)
    await policy.save(out)
    const expected = readSafetensors(path.join(whole, weights))
    const largest = Math.max(...[...expected.values()].map(tensor => tensor.bytes.length))
    for (const [maxShardBytes, shards] of [
      [1, expected.size],
      [2 * largest, undefined],
    ] as const) {
      await policy.save(out, { maxShardBytes })
      const names = readdirSync(out).filter(file => file.endsWith('.safetensors'))
      assert.not(names.includes(weights))
      if (shards !== undefined) assert.is(names.length, shards)
      const index = JSON.parse(readFileSync(path.join(out, `${weights}.index.json`), 'utf8'))
      assert.equal(new Set(Object.values(index.weight_map)), new Set(names))
      assert.is(
        index.metadata.total_size,
        [...expected.values()].reduce((sum, { bytes }) => sum + bytes.length, 0),
      )
      const found = new Map(names.flatMap(file => [...readSafetensors(path.join(out, file))]))
      assert.equal(new Map([...found].sort()), new Map([...expected].sort()))
      for (const file of names) {
        assert.match(file, new RegExp(`^model-\\d{5}-of-0*${names.length}.safetensors$`))
        const sizes = [...readSafetensors(path.join(out, file)).values()].map(({ bytes }) => bytes.length)
        const size = sizes.reduce((sum, bytes) => sum + bytes, 0)
        assert.ok(size <= maxShardBytes || sizes.length === 1)
      }
      assert.equal(await saved(out), readFileSync(path.join(whole, weights)))
    }
    writeFileSync(path.join(out, 'model-best.safetensors'), 'of somebody else')
    await policy.save(out)
    assert.equal(readdirSync(out).sort(), ['config.json', 'model-best.safetensors', weights])
    await rejects(policy.save(out, { maxShardBytes: 0 }), /maxShardBytes is 0, expected an integer ≥ 1/)
    await policy.dispose()
  }
})

test('save in another dtype: rounded from float32, masters from bfloat16', async () => {
  const out = newDir()
  const policy = await loadPolicy(dir, { dtype: 'bfloat16' })
  await policy.save(out, { dtype: 'float32' })
  // The masters are what the file said, not what bfloat16 makes of it.
  assert.equal(readSafetensors(path.join(out, weights)), readSafetensors(path.join(dir, weights)))
  await policy.save(out)
  const rounded = readFileSync(path.join(out, weights))
  await policy.dispose()
  const single = await load(dir)
  const other = newDir()
  await single.save(other, { dtype: 'bfloat16', maxShardBytes: 4000 })
  await single.dispose()
  assert.is(JSON.parse(readFileSync(path.join(other, 'config.json'), 'utf8')).torch_dtype, 'bfloat16')
  // Where both spellings are there, both say it.
  const both = await load(await newModel({ dtype: 'float32' }))
  await both.save(other, { dtype: 'bfloat16' })
  await both.dispose()
  const { dtype, torch_dtype } = JSON.parse(readFileSync(path.join(other, 'config.json'), 'utf8'))
  assert.equal([dtype, torch_dtype], ['bfloat16', 'bfloat16'])
  const again = await loadPolicy(other, { dtype: 'bfloat16', trainable: false })
  await again.save(other)
  await again.dispose()
  assert.equal(readFileSync(path.join(other, weights)), rounded)
})

test('float16 weights are read', async () => {
  const half = rewritten(tensors => {
    const shape = tensors.get('model.norm.weight')!.shape
    const bytes = Buffer.alloc(2 * shape[0]!)
    for (let i = 0; i < shape[0]!; i++) bytes.writeUInt16LE(0x3555, 2 * i) // 0.333251953125
    tensors.set('model.norm.weight', { dtype: 'F16', shape, bytes, values: new Float32Array() })
  })
  const policy = await load(half)
  const out = newDir()
  await policy.save(out)
  await policy.dispose()
  const { values } = readSafetensors(path.join(out, weights)).get('model.norm.weight')!
  assert.ok(values.every(x => x === 0.333251953125))
})

const qwen3 = { architectures: ['Qwen3ForCausalLM'], model_type: 'qwen3' }
const llama = { architectures: ['LlamaForCausalLM'], model_type: 'llama' }

const unsupported: [object, RegExp][] = [
  [{ architectures: ['MistralForCausalLM'] }, /architectures is .*MistralForCausalLM/s],
  [
    { model_type: 'qwen3' },
    /model_type is "qwen3", but architectures is \["Qwen2ForCausalLM"\]; qwen2 is supported/,
  ],
  [{ architectures: null, model_type: 'gemma' }, /model_type is "gemma"; qwen2, qwen3, llama is supported/],
  [{ ...qwen3, attention_bias: true }, /attention_bias is true; only false is supported/],
  [{ ...llama, attention_bias: true }, /attention_bias is true; only false is supported/],
  [{ ...llama, mlp_bias: true }, /mlp_bias is true; only false is supported/],
  [{ ...llama, rope_scaling: { rope_type: 'llama3', factor: 8 } }, /rope_scaling.rope_type is "llama3"/],
  [{ hidden_act: 'gelu' }, /hidden_act is "gelu"; only "silu"/],
  [{ layer_types: ['full_attention', 'linear_attention'] }, /layer_types contains "linear_attention"/],
  [{ rope_scaling: { rope_type: 'yarn', factor: 4 } }, /rope_scaling.rope_type is "yarn"/],
  [{ rope_scaling: { type: 'linear', factor: 2 } }, /rope_scaling.type is "linear"/],
  [{ rope_scaling: { factor: 2 } }, /rope_scaling is/],
  [{ rope_parameters: { rope_type: 'dynamic', rope_theta: 1e4 } }, /rope_parameters.rope_type is "dynamic"/],
  [{ rope_parameters: { partial_rotary_factor: 0.5 } }, /rope_parameters.partial_rotary_factor is 0.5/],
  [{ rope_parameters: { type: 'yarn', factor: 4 } }, /rope_parameters.type is "yarn"/],
  [{ rope_parameters: { full_attention: { rope_theta: 1e6 } } }, /rope_parameters.full_attention is \{/],
]
const malformed: [object, RegExp][] = [
  [{ vocab_size: undefined }, /vocab_size is missing/],
  [{ vocab_size: 0 }, /vocab_size must be an integer from 1 to 2\^31, got 0/],
  [{ hidden_size: 32.5 }, /hidden_size must be an integer .* got 32.5/],
  [{ num_hidden_layers: 'two' }, /num_hidden_layers must be an integer .* got "two"/],
  [{ num_hidden_layers: 2 ** 31 }, /num_hidden_layers must be an integer from 1 to 4096, got 2147483648/],
  [{ rope_parameters: 'default' }, /rope_parameters must be an object, got "default"/],
  [{ hidden_size: 30 }, /hidden_size must be a multiple of num_attention_heads = 4, got 30/],
  [{ num_key_value_heads: 3 }, /num_attention_heads must be a multiple of num_key_value_heads = 3, got 4/],
  [{ head_dim: 7 }, /head_dim must be even/],
  [{ rms_norm_eps: -1 }, /rms_norm_eps must be a number > 0, got -1/],
  [{ rope_theta: 'big' }, /rope_theta must be a number > 0, got "big"/],
  [{ tie_word_embeddings: 1 }, /tie_word_embeddings must be true or false, got 1/],
  [{ architectures: undefined, model_type: undefined }, /architectures is missing/],
]
test('config.json: what is unsupported or malformed is named with its value', async () => {
  for (const [cases, code] of [
    [unsupported, 'ERR_RAPO_UNSUPPORTED'],
    [malformed, 'ERR_RAPO_FORMAT'],
  ] as const) {
    for (const [changes, message] of cases) {
      const copy = newDir()
      writeFileSync(path.join(copy, 'config.json'), JSON.stringify({ ...tinyConfig, ...changes }))
      await rejects(load(copy), new RegExp(`config.json: ${message.source}`, 's'), code)
      await rejects(initializeModel(copy, 1), message, code)
    }
  }
  const texts: [string, RegExp][] = [
    ['', /config.json: not valid JSON: .* end of input at position 0/],
    ['{"a": 01}', /at position 7/],
    ['{"a": 1} x', /Expected end of input but got 'x'/],
    ['{"a": 1, "a": 2}', /Duplicate key 'a'/],
    ['{"a": nul}', /at position 6/],
    [`{"a": ${'['.repeat(100_000)}`, /not valid JSON/],
    ['[]', /must hold an object/],
  ]
  for (const [text, message] of texts) {
    const copy = newDir()
    writeFileSync(path.join(copy, 'config.json'), text)
    await rejects(load(copy), message, 'ERR_RAPO_FORMAT')
  }
  const huge = newDir()
  const sizes = {
    ...tinyConfig,
    vocab_size: 2 ** 31,
    hidden_size: 2 ** 31,
    num_attention_heads: 1,
    num_key_value_heads: 1,
  }
  writeFileSync(path.join(huge, 'config.json'), JSON.stringify(sizes))
  await rejects(initializeModel(huge, 1), /too large/, 'ERR_RAPO_UNSUPPORTED')
  // Sizes that memory could not hold are compared with the file before any is taken.
  const large = withWeights(file => writeFileSync(file, original))
  writeFileSync(path.join(large, 'config.json'), JSON.stringify({ ...tinyConfig, vocab_size: 2 ** 31 }))
  await rejects(
    load(large),
    /has the shape \[24, 32\], config.json asks for \[2147483648, 32\]/,
    'ERR_RAPO_FORMAT',
  )
})

/** Philox4x32-10 of Salmon et al. (2011), by its definition: the first two words. */
function philox(key: number, index: number): [number, number] {
  const multiply = (a: number, b: number) => {
    const product = BigInt(a) * BigInt(b)
    return [Number(product >> 32n), Number(product & 0xffffffffn)] as const
  }
  let [a, b, c, d] = [index, 0, 0, 0]
  let [k0, k1] = [key, 0]
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = multiply(0xd2511f53, a)
    const [high1, low1] = multiply(0xcd9e8d57, c)
    ;[a, b, c, d] = [(high1 ^ b ^ k0) >>> 0, low1, (high0 ^ d ^ k1) >>> 0, low0]
    ;[k0, k1] = [(k0 + 0x9e3779b9) >>> 0, (k1 + 0xbb67ae85) >>> 0]
  }
  return [a, b]
}

test('a new model: normal weights by Box and Muller from Philox, to the last bit but one', async () => {
  const words = 1000
  const fresh = readSafetensors(path.join(await newModel({ vocab_size: words }, 3), weights))
  const { values } = fresh.get('model.embed_tokens.weight')!
  assert.is(values.length, words * tinyConfig.hidden_size)
  values.forEach((value, i) => {
    const [a, b] = philox(3, i)
    const radius = Math.sqrt(-2 * Math.log((a + 0.5) / 2 ** 32))
    const expected = tinyConfig.initializer_range * radius * Math.cos((2 * Math.PI * b) / 2 ** 32)
    assert.ok(Math.abs(value - expected) <= 2 ** -23 * Math.abs(expected), `weight ${i}`)
  })
  assert.ok(fresh.get('model.norm.weight')!.values.every(value => value === 1))
})

test('state: a file of another model or none is refused and changes nothing', async () => {
  const policy = await loadPolicy(dir)
  const out = newDir()
  const state = path.join(out, 'state')
  await policy.saveState(state)
  const before = readFileSync(state)
  await rejects(policy.loadState(path.join(dir, weights)), /not a state file of rapo/, 'ERR_RAPO_FORMAT')
  await rejects(policy.loadState(path.join(out, 'none')), /cannot open/, 'ERR_RAPO_IO')
  const larger = await loadPolicy(await newModel({ vocab_size: 25 }))
  await larger.saveState(path.join(out, 'larger'))
  await larger.dispose()
  await rejects(
    policy.loadState(path.join(out, 'larger')),
    /master\.model\.embed_tokens\.weight" is F32 \[25, \d+\], expected F32 \[\d+, \d+\]/,
    'ERR_RAPO_FORMAT',
  )
  writeFileSync(path.join(out, 'cut'), before.subarray(0, before.length - 8))
  await rejects(policy.loadState(path.join(out, 'cut')), /cut off/, 'ERR_RAPO_FORMAT')
  await policy.saveState(state)
  assert.equal(readFileSync(state), before)
  await policy.dispose()
})

test('saving where that is impossible is an error and leaves nothing', async () => {
  const policy = await loadPolicy(dir)
  const out = newDir()
  await rejects(policy.save(path.join(out, 'missing')), /cannot create .*missing/, 'ERR_RAPO_IO')
  writeFileSync(path.join(out, 'file'), '')
  await rejects(policy.saveState(path.join(out, 'file', 'state')), /Not a directory/, 'ERR_RAPO_IO')
  assert.equal(readdirSync(out), ['file'])
  await policy.dispose()
})

test('a disk that fills up leaves the previous files whole and no temporary ones', () => {
  const out = newDir()
  copyFileSync(path.join(dir, 'config.json'), path.join(out, 'config.json'))
  copyFileSync(path.join(dir, weights), path.join(out, weights))
  writeFileSync(path.join(out, 'state'), 'previous')
  // A limit on the size of files stands in for a full disk: write() fails alike (EFBIG for ENOSPC), once the signal
  // is ignored. 1 block is 512 or 1024 bytes; the weights need tens of kilobytes.
  const child = fileURLToPath(new URL('../helpers/engine-full-disk.ts', import.meta.url))
  const script = 'trap "" XFSZ; ulimit -f 8; exec "$0" --import tsx "$1" "$2" "$3"'
  const output = execFileSync('sh', ['-c', script, process.execPath, child, dir, out], { encoding: 'utf8' })
  assert.match(output, /save: ERR_RAPO_IO cannot write .*model.safetensors: File too large/)
  assert.match(output, /saveState: ERR_RAPO_IO cannot write .*state: File too large/)
  assert.equal(readdirSync(out).sort(), ['config.json', weights, 'state'])
  assert.equal(readFileSync(path.join(out, weights)), original)
  assert.is(readFileSync(path.join(out, 'state'), 'utf8'), 'previous')
})

test('a file may be replaced while it is loaded', async () => {
  const copy = withWeights(file => writeFileSync(file, original))
  const policy = await load(copy)
  await policy.save(copy)
  renameSync(path.join(copy, weights), path.join(copy, 'old'))
  const out = newDir()
  await policy.save(out)
  await policy.dispose()
  assert.equal(readFileSync(path.join(out, weights)), original)
})

test.run()
