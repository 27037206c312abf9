/** Models as people have them: what loads, what is ignored with its name, and what each other thing is called. */
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { readRows } from '../../lib/data/rows.js'
import { evaluate } from '../../lib/eval/evaluate.js'
import { checkModel } from '../../lib/model/directory.js'
import { loadPolicy } from '../../lib/model/engine.js'
import { explainFiles } from '../../lib/model/foreign.js'
import { loadTokenizer } from '../../lib/model/tokenizer.js'
import { train } from '../../lib/train/train.js'
import {
  newDir,
  newModel,
  readSafetensors,
  rejects,
  type StoredTensor,
  tinyConfig,
  writeSafetensors,
} from '../helpers/engine-util.js'
import { makeConfig } from '../helpers/train-child.js'

const load = (dir: string) => loadPolicy(dir, { trainable: false })
const weights = 'model.safetensors'
const pointer = `version https://git-lfs.github.com/spec/v1\noid sha256:${'0f'.repeat(32)}\nsize 1234567\n`

async function saved(dir: string): Promise<Buffer> {
  const policy = await load(dir)
  const out = newDir()
  await policy.save(out)
  await policy.dispose()
  return readFileSync(path.join(out, weights))
}

/** A model whose weights are another file's. */
async function withTensors(change: (tensors: Map<string, StoredTensor>) => void): Promise<string> {
  const dir = await newModel()
  const tensors = readSafetensors(path.join(dir, weights))
  change(tensors)
  const header: Record<string, object> = {}
  let offset = 0
  for (const [name, { dtype, shape, bytes }] of tensors) {
    header[name] = { dtype, shape, data_offsets: [offset, offset + bytes.length] }
    offset += bytes.length
  }
  writeSafetensors(path.join(dir, weights), header, Buffer.concat([...tensors.values()].map(t => t.bytes)))
  return dir
}

const tensor = (dtype: string, values: readonly number[]): StoredTensor => ({
  ...{ dtype, shape: [values.length], values: new Float32Array() },
  bytes: Buffer.from(Float32Array.from(values).buffer),
})

/** Changes fields of config.json. */
function configure(dir: string, changes: object): string {
  writeFileSync(path.join(dir, 'config.json'), JSON.stringify({ ...tinyConfig, ...changes }))
  return dir
}

/** A directory with these files. */
function directory(files: Readonly<Record<string, string | object>>): string {
  const dir = newDir()
  for (const [name, content] of Object.entries(files)) {
    writeFileSync(path.join(dir, name), typeof content === 'string' ? content : JSON.stringify(content))
  }
  return dir
}

const dir = await newModel()

test('a sliding window that never acts is none', async () => {
  const never: object[] = [
    { use_sliding_window: true, sliding_window: 16, max_window_layers: 2 },
    { use_sliding_window: true, sliding_window: 16 }, // from layer 28 on
    { use_sliding_window: false, sliding_window: 16, max_window_layers: 0 },
    { use_sliding_window: true, sliding_window: 64, max_window_layers: 0 },
    { use_sliding_window: true, sliding_window: null, max_window_layers: 0 },
    { use_sliding_window: true, max_window_layers: 0 }, // 4096 tokens
    { use_sliding_window: true, sliding_window: 16, layer_types: ['full_attention', 'full_attention'] },
    { use_sliding_window: true, sliding_window: 64, layer_types: ['full_attention', 'sliding_attention'] },
  ]
  const expected = await saved(dir)
  for (const changes of never) assert.equal(await saved(configure(await newModel(), changes)), expected)
})

test('a sliding window shorter than the context is refused, with the context that it allows', async () => {
  const acting: [object, string][] = [
    [{ max_window_layers: 1 }, 'in layer 1 of 0 to 1'],
    [{ max_window_layers: 0 }, 'in layer 0 of 0 to 1'],
    [{ layer_types: ['full_attention', 'sliding_attention'] }, 'in layer 1 of 0 to 1'],
  ]
  for (const [changes, where] of acting) {
    const shorter = configure(await newModel(), { use_sliding_window: true, sliding_window: 63, ...changes })
    const what = `config.json: sliding_window is 63, shorter than max_position_embeddings 64, ${where}; .* max_position_embeddings 63`
    await rejects(load(shorter), new RegExp(what), 'ERR_RAPO_UNSUPPORTED')
  }
  for (const [changes, message] of [
    [{ max_window_layers: -1 }, /max_window_layers must be an integer ≥ 0, got -1/],
    [{ use_sliding_window: true, sliding_window: '4k' }, /sliding_window must be an integer .* got "4k"/],
    [{ layer_types: 'full_attention' }, /layer_types must be a list, got "full_attention"/],
  ] as const) {
    await rejects(load(configure(await newModel(), changes)), message, 'ERR_RAPO_FORMAT')
  }
})

test('F64 weights are read as float32 numbers', async () => {
  const wide = await withTensors(tensors => {
    for (const [name, { shape, values }] of tensors) {
      const bytes = Buffer.from(Float64Array.from(values).buffer)
      tensors.set(name, { dtype: 'F64', shape, bytes, values })
    }
  })
  assert.equal(await saved(wide), await saved(dir))
})

test('shards may lie in folders below the directory, not outside', async () => {
  const sharded = await newModel()
  mkdirSync(path.join(sharded, 'weights', 'all'), { recursive: true })
  renameSync(path.join(sharded, weights), path.join(sharded, 'weights', 'all', 'one.safetensors'))
  const names = [...readSafetensors(path.join(dir, weights)).keys()]
  const write = (file: string) => {
    const map = Object.fromEntries(names.map(name => [name, file]))
    writeFileSync(path.join(sharded, `${weights}.index.json`), JSON.stringify({ weight_map: map }))
  }
  write('weights/all/one.safetensors')
  assert.equal(await saved(sharded), await saved(dir))
  const wrong = [
    '/weights/all/one.safetensors',
    'weights/../weights/all/one.safetensors',
    './weights/all/one.safetensors',
    'weights//all/one.safetensors',
    'weights/all/',
    '',
    '..',
  ]
  for (const file of wrong) {
    write(file)
    await rejects(load(sharded), /is not mapped to a file of this directory/, 'ERR_RAPO_FORMAT')
  }
})

test('rotary frequencies and value heads are ignored with their names', async () => {
  const more = await withTensors(tensors => {
    for (const layer of [0, 1]) {
      tensors.set(`model.layers.${layer}.self_attn.rotary_emb.inv_freq`, tensor('F32', [1, 0.5]))
    }
    tensors.set('v_head.summary.weight', tensor('F32', [1, 2, 3]))
    tensors.set('score.weight', tensor('F32', [4]))
  })
  const warned = new Promise<Error>(resolve => process.once('warning', resolve))
  const expected = await saved(dir)
  assert.equal(await saved(more), expected)
  const { name, message } = await warned
  assert.is(name, 'RapoWarning')
  const file = path.join(more, weights)
  assert.is(
    message,
    `ignored, because generation and training do not use them: ${file}: score.weight, ${file}: v_head.summary.weight, ${file}: model.layers.0.self_attn.rotary_emb.inv_freq and 1 more rotary frequency`,
  )
})

test('tensors of wrapped, unmerged and quantised models are called that', async () => {
  const renamed = (change: (name: string) => string) =>
    withTensors(tensors => {
      for (const [name, value] of [...tensors]) {
        tensors.delete(name)
        tensors.set(change(name), value)
      }
    })
  const cases: [string, RegExp][] = [
    [
      await renamed(name => `_orig_mod.${name}`),
      /"model.embed_tokens.weight" is missing; the file calls it "_orig_mod.model.embed_tokens.weight"/,
    ],
    [
      await renamed(name => name.replace('model.', '')),
      /is missing; the file calls it "embed_tokens.weight"/,
    ],
    [
      await renamed(name => name.replace('q_proj.weight', 'q_proj.base_layer.weight')),
      /q_proj.weight" is missing; the file has LoRA weights \(model.layers.0.self_attn.q_proj.base_layer.weight\) that are not merged/,
    ],
    [
      await withTensors(tensors =>
        tensors.set('model.layers.0.mlp.up_proj.weight_scale', tensor('F32', [1])),
      ),
      /weight_scale" does not belong .*; the file is of a quantised model/,
    ],
  ]
  for (const [broken, message] of cases) await rejects(load(broken), message, 'ERR_RAPO_FORMAT')
})

test('a Git LFS pointer in place of any file says so', async () => {
  for (const name of [
    weights,
    'config.json',
    `${weights}.index.json`,
    'tokenizer.json',
    'tokenizer_config.json',
  ]) {
    const cloned = await newModel()
    writeFileSync(path.join(cloned, name), pointer)
    const message = new RegExp(
      `^${path.join(cloned, name)} is a Git LFS pointer, not the file: git lfs pull$`,
    )
    await rejects(load(cloned), message, 'ERR_RAPO_FORMAT')
  }
  // A shard under any name, which only the index knows.
  const sharded = await newModel()
  rmSync(path.join(sharded, weights))
  writeFileSync(path.join(sharded, 'part.bin'), pointer)
  writeFileSync(
    path.join(sharded, `${weights}.index.json`),
    JSON.stringify({ weight_map: { x: 'part.bin' } }),
  )
  await rejects(
    load(sharded),
    /part.bin is a Git LFS pointer, not the file: git lfs pull$/,
    'ERR_RAPO_FORMAT',
  )
  // A file that no model is read from may be one.
  const pictured = await newModel()
  writeFileSync(path.join(pictured, 'picture.png'), pointer)
  await (await load(pictured)).dispose()
  const tokenizer = directory({ 'tokenizer.json': pointer })
  assert.throws(
    () => loadTokenizer(tokenizer),
    /tokenizer.json is a Git LFS pointer, not the file: git lfs pull$/,
  )
  for (const name of ['train.jsonl', 'train.parquet', 'train.jsonl.gz', 'train.csv']) {
    const file = path.join(directory({ [name]: pointer }), name)
    await rejects(
      readRows(file),
      /train\.\S+ is a Git LFS pointer, not the file: git lfs pull$/,
      'ERR_RAPO_DATA',
    )
  }
})

test('a directory without safetensors is called what it is, with the command that helps', async () => {
  const own = { 'config.json': tinyConfig }
  const cases: [Record<string, string | object>, RegExp][] = [
    [{}, /^\S+ has no config.json and no model.safetensors$/],
    [own, /^\S+ has no model.safetensors$/],
    [
      { ...own, 'weights.safetensors': '', 'model.onnx': '' },
      /has no model.safetensors; of other weights it has /,
    ],
    [{ [weights]: '' }, /^\S+ has no config.json$/],
    [
      { 'adapter_config.json': {}, 'adapter_model.safetensors': '' },
      /holds an adapter of PEFT \(adapter_\S+\), which changes another model.*python -c ".*AutoPeftModelForCausalLM.from_pretrained\('\S+', torch_dtype='auto'\).merge_and_unload\(\).save_pretrained\('\S+-merged'/,
    ],
    [
      { ...own, 'pytorch_model.bin': '' },
      /holds its weights as pytorch_model.bin only.*AutoModelForCausalLM.from_pretrained\(.*safe_serialization=True/,
    ],
    [{ ...own, 'pytorch_model-00001-of-00002.bin': '' }, /as pytorch_model-00001-of-00002.bin only/],
    [
      { 'qwen2.5-q4_k_m.gguf': '' },
      /GGUF format of llama.cpp \(qwen2.5-q4_k_m.gguf\).*gguf_file='qwen2.5-q4_k_m.gguf'/,
    ],
    [{ ...own, 'model-00001-of-00002.safetensors': '' }, /but no model.safetensors.index.json/],
  ]
  for (const [files, message] of cases) await rejects(load(directory(files)), message, 'ERR_RAPO_FORMAT')
  await rejects(
    load('Qwen2.5-0.5B'),
    /^there is no directory Qwen2.5-0.5B \(\S+Qwen2.5-0.5B\); .* hub is named OWNER\/NAME$/,
    'ERR_RAPO_IO',
  )
  const file = path.join(directory({ 'x.gguf': '' }), 'x.gguf')
  await rejects(load(file), /x.gguf is a file; a model is a directory/, 'ERR_RAPO_FORMAT')
})

test('a run, and a directory of models, say where the models are', () => {
  const dir = newDir()
  const model = (...names: string[]) => {
    const place = path.join(dir, ...names)
    mkdirSync(place, { recursive: true })
    writeFileSync(path.join(place, 'config.json'), '{}')
    return place
  }
  const [a, b] = [model('a'), model('b')]
  assert.throws(
    () => checkModel(dir),
    new RegExp(`has no config.json and no model.safetensors; there are models in ${a}, ${b}$`),
  )
  const newest = model('checkpoints', 'step-000002')
  writeFileSync(path.join(dir, 'checkpoints', 'latest'), 'step-000002\n')
  assert.throws(() => checkModel(dir), new RegExp(`; of this run, ${newest} is the newest model$`))
  const below = path.join(a, 'config.json', 'below')
  assert.throws(
    () => checkModel(below, 'model.dir'),
    new RegExp(`^model.dir: there is no directory ${below}`),
  )
})

test('the commands name a repository of the hub by its name', () => {
  const text = explainFiles(['config.json', 'pytorch_model.bin'], 'o/m')
  assert.match(
    text!,
    "AutoModelForCausalLM.from_pretrained('o/m', torch_dtype='auto').save_pretrained('m-safetensors'",
  )
  assert.match(explainFiles(['adapter_config.json'], 'o/adapter')!, ".save_pretrained('adapter-merged'")
  assert.is(explainFiles(['config.json', weights, 'pytorch_model.bin', 'x.gguf'], 'o/m'), undefined)
})

test('of weights of other formats three are named', () => {
  assert.is(
    explainFiles(['a.pt', 'b.onnx', 'c.h5', 'd.pth', 'README.md'], 'o/m'),
    'has no config.json and no model.safetensors; of other weights it has a.pt, b.onnx, c.h5',
  )
  assert.is(explainFiles(['config.json', 'README.md'], 'o/m'), 'has no model.safetensors')
})

test('another architecture and a quantised model are called what they are, whatever their weights', async () => {
  const cases: [object, RegExp][] = [
    [
      { architectures: ['MistralForCausalLM'], model_type: 'mistral' },
      /architectures is \["MistralForCausalLM"\]; one of Qwen2ForCausalLM, Qwen3ForCausalLM, LlamaForCausalLM is supported. rapo runs .*Qwen2.5/,
    ],
    [
      { architectures: ['Qwen3ForCausalLM'], model_type: 'llama' },
      /model_type is "llama", but architectures is \["Qwen3ForCausalLM"\]; qwen3 is supported/,
    ],
    [{ architectures: null, model_type: 'gpt2' }, /model_type is "gpt2"; qwen2, qwen3, llama is supported/],
    [{ architectures: ['Qwen3MoeForCausalLM'] }, /\["Qwen3MoeForCausalLM"\], a mixture of experts;/],
    [{ architectures: ['LlamaModel'] }, /, a model without the head that generates text;/],
    [{ architectures: ['Qwen2MoeForCausalLM'] }, /\["Qwen2MoeForCausalLM"\], a mixture of experts;/],
    [{ architectures: ['Qwen2VLForConditionalGeneration'] }, /, a model of more than text;/],
    [{ architectures: ['Qwen2ForSequenceClassification'] }, /, a reward model or classifier;/],
    [{ architectures: ['Qwen2Model'] }, /, a model without the head that generates text;/],
    [
      { quantization_config: { quant_method: 'awq', bits: 4 } },
      /quantised by AWQ with 4 bits; .* Take the model/,
    ],
    [{ quantization_config: { quant_method: 'gptq', bits: 8 } }, /quantised by GPTQ with 8 bits/],
    [{ quantization_config: { quant_method: 'fp8' } }, /quantised by FP8;/],
    [{ quantization_config: { load_in_4bit: true } }, /quantised by bitsandbytes;/],
    [{ quantization_config: { quant_method: 'compressed-tensors' } }, /quantised by compressed-tensors;/],
  ]
  for (const [changes, message] of cases) {
    for (const rest of [{}, { [weights]: '' }, { 'pytorch_model.bin': '' }]) {
      const other = directory({ 'config.json': { ...tinyConfig, ...changes }, ...rest })
      await rejects(load(other), message, 'ERR_RAPO_UNSUPPORTED')
    }
  }
  const named = path.join(newDir(), 'Qwen2.5-7B-Instruct-GPTQ-Int4')
  mkdirSync(named)
  configure(named, { quantization_config: { quant_method: 'gptq' } })
  await rejects(load(named), /made from \(by its name: Qwen2.5-7B-Instruct\)$/, 'ERR_RAPO_UNSUPPORTED')
})

test('training and evaluation refuse such a directory before the tokenizer is read, and write nothing', async () => {
  const adapter = directory({ 'adapter_config.json': {} })
  const output = path.join(newDir(), 'run')
  const message = /holds an adapter of PEFT/
  const config = makeConfig(output, adapter)
  await rejects(train(config), message, 'ERR_RAPO_FORMAT')
  const withReference = { ...config, model: { ...config.model, dir, reference: adapter } }
  await rejects(train(withReference), message, 'ERR_RAPO_FORMAT')
  const measured = { dir: adapter, model: adapter, name: 'adapter', output }
  const data = { ...config.data, eval: config.data.train }
  // An evaluation takes an adapter with its model, and this one says nothing of itself.
  await rejects(evaluate({ ...config, data }, measured), /peft_type is undefined/, 'ERR_RAPO_UNSUPPORTED')
  assert.not(existsSync(output))
})

test('what config.json says beside the dtype is written back as it was', async () => {
  const own = await newModel()
  const text = readFileSync(path.join(own, 'config.json'), 'utf8').replace(
    '"rope_theta": 10000',
    '"rope_theta": 10000.00, "x": 1e-06',
  )
  writeFileSync(path.join(own, 'config.json'), text)
  const policy = await load(own)
  const out = newDir()
  await policy.save(out, { dtype: 'bfloat16' })
  await policy.dispose()
  const written = readFileSync(path.join(out, 'config.json'), 'utf8')
  assert.match(written, /\n {2}"rope_theta": 10000.00,\n {2}"x": 1e-06,\n/)
  assert.match(written, /"torch_dtype": "bfloat16"/)
})

test.run()
