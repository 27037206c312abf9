/** Recognises models that the engine cannot run by their files or their config.json, and says what to do with each. */
import { isLosslessNumber } from 'lossless-json'

/** The models that the engine runs: model_type, and the entry in `architectures`. */
const architectures = {
  qwen2: 'Qwen2ForCausalLM',
  qwen3: 'Qwen3ForCausalLM',
  llama: 'LlamaForCausalLM',
} as const

/** The model_type of a model that the engine runs. */
export type Architecture = keyof typeof architectures

const types = Object.keys(architectures) as Architecture[]
const classes: readonly string[] = Object.values(architectures)

const supported =
  'rapo runs Qwen2 and Qwen2.5 (also Math, Coder, and DeepSeek-R1-Distill-Qwen), dense Qwen3, and models built as Llama whose rotary embeddings are not scaled, such as SmolLM2'

const kinds: readonly (readonly [RegExp, string])[] = [
  [/RewardModel|ForSequenceClassification|ForTokenClassification/, 'a reward model or classifier'],
  [/^(Qwen[23]|Llama)Model$/, 'a model without the head that generates text'],
  [/moe/i, 'a mixture of experts'],
  [/VL|Vision|Audio|Omni|ForConditionalGeneration/, 'a model of more than text'],
]

/** The model_type of a config.json in which explainConfig finds no fault. */
export function architectureOf(json: Readonly<Record<string, unknown>>): Architecture {
  const named = Array.isArray(json.architectures) ? classes.indexOf(json.architectures[0]) : -1
  return named >= 0 ? types[named]! : (json.model_type as Architecture)
}

/** Why the engine cannot run the model of this config.json; undefined if it may be able to. */
export function explainConfig(json: Readonly<Record<string, unknown>>, dir: string): string | undefined {
  const { architectures: named, model_type: type } = json
  const isNamed = (named ?? undefined) !== undefined
  if (isNamed && !(Array.isArray(named) && named.length === 1 && classes.includes(named[0]))) {
    const shown = JSON.stringify(named)
    const kind = kinds.find(([pattern]) => pattern.test(shown.replace(/^\["|"\]$/g, '')))?.[1]
    return `architectures is ${shown}${kind ? `, ${kind}` : ''}; one of ${classes.join(', ')} is supported. ${supported}`
  }
  const wanted = isNamed ? [architectureOf(json)] : types
  if ((type ?? undefined) !== undefined && !wanted.includes(type as Architecture)) {
    const why = isNamed ? `, but architectures is ${JSON.stringify(named)}` : ''
    return `model_type is ${JSON.stringify(type)}${why}; ${wanted.join(', ')} is supported. ${supported}`
  }
  const quantised = json.quantization_config ?? undefined
  return quantised === undefined ? undefined : explainQuantised(quantised as Record<string, unknown>, dir)
}

const methods: Readonly<Record<string, string>> = { awq: 'AWQ', gptq: 'GPTQ', fp8: 'FP8' }

function explainQuantised(quantised: Readonly<Record<string, unknown>>, dir: string): string {
  const method = String(
    quantised.quant_method ??
      (quantised.load_in_4bit || quantised.load_in_8bit ? 'bitsandbytes' : 'an unknown method'),
  )
  const { bits } = quantised
  const width = isLosslessNumber(bits) ? ` with ${bits} bits` : ''
  const name = nameOf(dir)
  const bare = name.replace(/[-_.](awq|gptq|fp8|bnb|int[48]|w[48]a\d+|[48]bit)([-_.].*)?$/i, '')
  const from = bare === name ? '' : ` (by its name: ${bare})`
  return `quantization_config says that the weights are quantised by ${methods[method] ?? method}${width}; rapo trains unquantised weights (F64, F32, BF16, F16). Take the model that this one was made from${from}`
}

/** A directory's name, or OWNER/NAME for a directory in the hub's cache. */
function nameOf(dir: string): string {
  const [, owner, name] = /models--([^/\\]+?)--([^/\\]+)[/\\]snapshots/.exec(dir) ?? []
  return owner && name ? `${owner}/${name}` : (dir.split(/[/\\]/).filter(Boolean).at(-1) ?? dir)
}

/**
 * Why the engine cannot read a model from these files of a directory or repository; undefined if it can. `from` is the name
 * by which transformers would load the model.
 */
export function explainFiles(names: readonly string[], from: string): string | undefined {
  const has = (pattern: RegExp) => names.find(name => pattern.test(name))
  const hasWeights = has(/^model\.safetensors(\.index\.json)?$/)
  if (hasWeights && has(/^config\.json$/)) return undefined

  const python = (load: string, to: string) =>
    `python -c "from transformers import AutoModelForCausalLM, AutoTokenizer; ${load}.save_pretrained('${to}', safe_serialization=True); AutoTokenizer.from_pretrained('${from}').save_pretrained('${to}')"`
  const load = (more = '') => `AutoModelForCausalLM.from_pretrained('${from}', torch_dtype='auto'${more})`
  const last = from.split('/').at(-1)!

  if (hasWeights) return 'has no config.json'
  if (has(/^adapter_(config\.json|model\.(safetensors|bin))$/)) {
    const merge = `from peft import AutoPeftModelForCausalLM; AutoPeftModelForCausalLM.from_pretrained('${from}', torch_dtype='auto').merge_and_unload()`
    return `holds an adapter of PEFT (${has(/^adapter_/)}), which changes another model, and no model. Merge the two: rapo merge --model ${from} --output ${last}-merged; or with PEFT: ${python(merge, `${last}-merged`)}`
  }
  const gguf = has(/\.gguf$/i)
  if (gguf) {
    return `holds a model in the GGUF format of llama.cpp (${gguf}); rapo reads safetensors. Take the model that it was made from, or convert it: ${python(load(`, gguf_file='${gguf}'`), `${last}-safetensors`)}`
  }
  const pickled = has(/^pytorch_model.*\.bin(\.index\.json)?$/)
  if (pickled) {
    return `holds its weights as ${pickled} only, a format that can run code when it is read; rapo reads safetensors. Convert them: ${python(load(), `${last}-safetensors`)}`
  }
  const shard = has(/^model-\d+-of-\d+\.safetensors$/)
  if (shard) return `has ${shard}, but no model.safetensors.index.json, which says what each file holds`
  const other = names.filter(name => /\.(safetensors|bin|pth?|ckpt|h5|msgpack|onnx)$/i.test(name)).slice(0, 3)
  const missing = has(/^config\.json$/) ? 'no model.safetensors' : 'no config.json and no model.safetensors'
  return `has ${missing}${other.length > 0 ? `; of other weights it has ${other.join(', ')}` : ''}`
}
