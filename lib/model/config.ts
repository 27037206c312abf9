/** Reads and checks the config.json of a model, and writes it with another dtype. */
import { readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import * as lossless from 'lossless-json'
import { RapoError, type RapoErrorCode } from '../base/errors.js'
import { asIoError } from '../base/files.js'
import { isLfsPointer, lfsMessage } from '../base/lfs.js'
import { type Architecture, architectureOf, explainConfig } from './foreign.js'
import { type ModelDType, modelDTypes } from './policy.js'

/** The fields of config.json that the engine needs. Sizes are integers from 1 to 2^31, other numbers positive and finite. */
export interface ModelConfig {
  readonly architecture: Architecture
  readonly vocabSize: number
  readonly hiddenSize: number
  readonly intermediateSize: number
  readonly layers: number
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly maxPositionEmbeddings: number
  readonly rmsNormEps: number
  readonly ropeTheta: number
  readonly initializerRange: number
  readonly tiedEmbeddings: boolean
}

/** A model's directory and configuration, for the engine. */
export interface ModelSource {
  readonly dir: string
  readonly config: ModelConfig
  /** Text of config.json. */
  readonly text: string
}

type Fields = Readonly<Record<string, unknown>>

/** Fields that switch on biases which the engine does not have. */
const biases = { qwen2: [], qwen3: ['attention_bias'], llama: ['attention_bias', 'mlp_bias'] } as const

const MAX_BYTES = 2 ** 24
/** Keeps every product of two sizes within 64 bits. */
const MAX_SIZE = 2 ** 31
/** Bounds the memory that is taken per layer before the weights are read. */
const MAX_LAYERS = 4096

/**
 * config.json of a model's directory; absent fields take transformers' defaults for its architecture. Throws ERR_RAPO_IO,
 * ERR_RAPO_FORMAT (a field of the wrong kind or range) and ERR_RAPO_UNSUPPORTED (a model that the engine cannot run); the
 * message names the file, the field and its value.
 */
export function readModelConfig(dir: string): ModelSource {
  const file = path.join(dir, 'config.json')
  const text = readText(file)
  const json = parseFields(text, file)
  const fail = (code: RapoErrorCode, what: string) => new RapoError(code, `${file}: ${what}`)
  const { architectures, model_type } = json
  if ((architectures ?? model_type ?? undefined) === undefined) {
    throw fail('ERR_RAPO_FORMAT', 'architectures is missing')
  }
  const foreign = explainConfig(json, dir)
  if (foreign) throw fail('ERR_RAPO_UNSUPPORTED', foreign)
  return { dir, config: configOf(json, fail), text }
}

/** The dtype in the text of a config.json, under the name dtype or torch_dtype; float32 if a policy cannot have that dtype. */
export function modelDTypeOf(text: string): ModelDType {
  const { dtype, torch_dtype } = lossless.parse(text) as Fields
  return modelDTypes.find(name => name === (dtype ?? torch_dtype)) ?? 'float32'
}

/** The text of a config.json with another dtype, under the name that the field has there. Numbers keep their digits. */
export function withDtype(text: string, dtype: string): string {
  const json = { ...(lossless.parse(text) as Fields) }
  const isOlder = 'torch_dtype' in json
  if (isOlder) json.torch_dtype = dtype
  if (!isOlder || 'dtype' in json) json.dtype = dtype
  return `${lossless.stringify(json, undefined, 2)}\n`
}

function readText(file: string): string {
  let content: Buffer
  try {
    // Reading a pipe would wait for a writer.
    if (!statSync(file).isFile()) throw new Error('not a regular file')
    content = readFileSync(file)
  } catch (cause) {
    throw asIoError(`cannot read ${file}`, cause)
  }
  if (isLfsPointer(content)) throw new RapoError('ERR_RAPO_FORMAT', lfsMessage(file))
  if (content.length > MAX_BYTES) {
    throw new RapoError('ERR_RAPO_FORMAT', `${file}: larger than ${MAX_BYTES} bytes`)
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(content)
  } catch (cause) {
    throw new RapoError('ERR_RAPO_FORMAT', `${file}: not UTF-8 text`, { cause })
  }
}

function parseFields(text: string, file: string): Fields {
  let json: unknown
  try {
    json = lossless.parse(text)
  } catch (cause) {
    throw new RapoError('ERR_RAPO_FORMAT', `${file}: not valid JSON: ${(cause as Error).message}`, { cause })
  }
  if (isObject(json)) return json
  throw new RapoError('ERR_RAPO_FORMAT', `${file}: must hold an object`)
}

function isObject(value: unknown): value is Fields {
  return (
    typeof value === 'object' && value !== null && !Array.isArray(value) && !lossless.isLosslessNumber(value)
  )
}

/** A value as messages show it; long values are cut. */
function show(value: unknown): string {
  const text = lossless.stringify(value) ?? 'undefined'
  return text.length > 200 ? `${text.slice(0, 200)}…` : text
}

function configOf(json: Fields, fail: (code: RapoErrorCode, what: string) => RapoError): ModelConfig {
  const malformed = (field: string, wanted: string, value: unknown) =>
    fail('ERR_RAPO_FORMAT', `${field} must be ${wanted}, got ${show(value)}`)
  const unsupported = (what: string) => fail('ERR_RAPO_UNSUPPORTED', what)
  const numberOf = (value: unknown) =>
    lossless.isLosslessNumber(value) ? Number(value.toString()) : Number.NaN

  // null counts as absent, as Python's None.
  const size = (field: string, fallback?: number, most = MAX_SIZE): number => {
    const value = json[field] ?? undefined
    if (value === undefined && fallback !== undefined) return fallback
    if (value === undefined) throw fail('ERR_RAPO_FORMAT', `${field} is missing`)
    const found = numberOf(value)
    if (Number.isSafeInteger(found) && found >= 1 && found <= most) return found
    throw malformed(field, `an integer from 1 to ${most === MAX_SIZE ? '2^31' : most}`, value)
  }
  const count = (field: string, fallback: number): number => {
    const value = json[field] ?? undefined
    if (value === undefined) return fallback
    const found = numberOf(value)
    if (Number.isSafeInteger(found) && found >= 0) return found
    throw malformed(field, 'an integer ≥ 0', value)
  }
  const positive = (field: string, fallback: number, from = json, shown = field): number => {
    const value = from[field] ?? undefined
    if (value === undefined) return fallback
    const found = numberOf(value)
    if (found > 0 && found < Infinity) return found
    throw malformed(shown, 'a number > 0', value)
  }
  const flag = (field: string): boolean => {
    const value = json[field] ?? false
    if (typeof value === 'boolean') return value
    throw malformed(field, 'true or false', value)
  }
  const only = (field: string, supported: string, from = json, shown = field): void => {
    const value = from[field] ?? supported
    if (value !== supported) throw unsupported(`${shown} is ${show(value)}; only "${supported}" is supported`)
  }
  /** Accepts only rotary embeddings without scaling. transformers reads the kind from rope_type or from type. */
  const unscaled = (field: string): Fields | undefined => {
    const rope = json[field] ?? undefined
    if (rope === undefined) return undefined
    if (!isObject(rope)) throw malformed(field, 'an object', rope)
    for (const kind of ['rope_type', 'type']) only(kind, 'default', rope, `${field}.${kind}`)
    return rope
  }

  const architecture = architectureOf(json)
  only('hidden_act', 'silu')
  for (const field of biases[architecture]) {
    if (flag(field)) throw unsupported(`${field} is true; only false is supported`)
  }
  const scaling = unscaled('rope_scaling')
  if (scaling && (scaling.rope_type ?? scaling.type ?? undefined) === undefined) {
    throw unsupported(`rope_scaling is ${show(scaling)}; not supported`)
  }
  const vocabSize = size('vocab_size')
  const hiddenSize = size('hidden_size')
  const intermediateSize = size('intermediate_size')
  const layers = size('num_hidden_layers', undefined, MAX_LAYERS)
  const heads = size('num_attention_heads')
  const kvHeads = size('num_key_value_heads', heads)
  const maxPositionEmbeddings = size('max_position_embeddings', architecture === 'llama' ? 2048 : 32768)
  if (heads % kvHeads !== 0) {
    throw malformed('num_attention_heads', `a multiple of num_key_value_heads = ${kvHeads}`, heads)
  }
  const isSplit = architecture !== 'qwen3' && (json.head_dim ?? undefined) === undefined
  if (isSplit && hiddenSize % heads !== 0) {
    throw malformed('hidden_size', `a multiple of num_attention_heads = ${heads}`, hiddenSize)
  }
  const headDim = size('head_dim', isSplit ? hiddenSize / heads : 128)
  if (headDim % 2 !== 0) {
    throw fail('ERR_RAPO_FORMAT', `head_dim must be even for rotary embeddings, got ${headDim}`)
  }

  // As Qwen2Config and Qwen3Config of transformers read the fields: a window acts only in layers of the kind sliding_attention, which by
  // default are those from max_window_layers on.
  const window =
    architecture === 'llama' || !flag('use_sliding_window') || json.sliding_window === null
      ? Infinity
      : size('sliding_window', 4096)
  const firstWithWindow = count('max_window_layers', 28)
  const kinds = json.layer_types ?? undefined
  if (kinds !== undefined && !Array.isArray(kinds)) throw malformed('layer_types', 'a list', kinds)
  const other = kinds?.find(kind => kind !== 'full_attention' && kind !== 'sliding_attention')
  if (other !== undefined) {
    throw unsupported(`layer_types contains ${show(other)}; only "full_attention" is supported`)
  }
  const layer = kinds ? kinds.indexOf('sliding_attention') : firstWithWindow < layers ? firstWithWindow : -1
  if (layer >= 0 && window < maxPositionEmbeddings) {
    throw unsupported(
      `sliding_window is ${window}, shorter than max_position_embeddings ${maxPositionEmbeddings}, in layer ${layer} of 0 to ${layers - 1}; sliding-window attention is not supported. With max_position_embeddings ${window}, which limits a prompt and its completion together, the window never acts and the model is read`,
    )
  }

  const initializerRange = positive('initializer_range', 0.02)
  const rmsNormEps = positive('rms_norm_eps', 1e-6)
  let ropeTheta = positive('rope_theta', 10000)
  const rope = unscaled('rope_parameters')
  if (rope) {
    const layered = Object.keys(rope).find(name => isObject(rope[name]))
    if (layered !== undefined) {
      throw unsupported(
        `rope_parameters.${layered} is ${show(rope[layered])}; parameters for each kind of layer are not supported`,
      )
    }
    const factor = 'partial_rotary_factor'
    if (positive(factor, 1, rope, `rope_parameters.${factor}`) !== 1) {
      throw unsupported(`rope_parameters.${factor} is ${show(rope[factor])}; only 1 is supported`)
    }
    ropeTheta = positive('rope_theta', ropeTheta, rope, 'rope_parameters.rope_theta')
  }
  return {
    architecture,
    ...{ vocabSize, hiddenSize, intermediateSize, layers, heads, kvHeads, headDim, maxPositionEmbeddings },
    ...{ rmsNormEps, ropeTheta, initializerRange, tiedEmbeddings: flag('tie_word_embeddings') },
  }
}
