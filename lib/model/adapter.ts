/** Adapters of low rank (LoRA, arXiv 2106.09685) in the names and the files of PEFT. */
import { existsSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { withPlace } from '../base/files.js'
import type { LoraOptions } from './policy.js'
import { readJson } from './tokenizer.js'

/** The matrices of a layer that an adapter may change, in the layer's order. */
export const loraModules = [
  ...(['q_proj', 'k_proj', 'v_proj', 'o_proj'] as const),
  ...(['gate_proj', 'up_proj', 'down_proj'] as const),
]

/** What adapter_config.json says of an adapter's shape. */
export interface AdapterShape {
  readonly r: number
  readonly loraAlpha: number
  readonly targetModules: readonly string[]
  readonly useRslora: boolean
}

/** An adapter as the engine is told of it. */
export interface NativeAdapter {
  readonly r: number
  readonly scaling: number
  readonly targetModules: readonly string[]
  /** adapter_model.safetensors; undefined for a new adapter. */
  readonly file?: string | undefined
  readonly seed: number
}

const MAX_RANK = 65_536
const configFile = 'adapter_config.json'
const weightsFile = 'adapter_model.safetensors'

/** Whether a directory holds an adapter of PEFT. */
export function isAdapter(dir: string): boolean {
  return existsSync(path.join(dir, configFile))
}

/** A new adapter's shape. Throws ERR_RAPO_INVALID_ARGUMENT. */
export function shapeOf(options: LoraOptions): AdapterShape {
  const { r, loraAlpha = 8, targetModules = 'all-linear', useRslora = false } = options
  const fail = (field: string, value: unknown, expected: string) => {
    throw new RapoError('ERR_RAPO_INVALID_ARGUMENT', `lora.${field} is ${value}, expected ${expected}`)
  }
  if (!isRank(r)) fail('r', r, `an integer in [1, ${MAX_RANK}]`)
  if (!isAlpha(loraAlpha)) fail('loraAlpha', loraAlpha, 'a number > 0')
  if (typeof useRslora !== 'boolean') fail('useRslora', useRslora, 'true or false')
  const names: readonly string[] = targetModules === 'all-linear' ? loraModules : targetModules
  const isList = Array.isArray(names) && names.length > 0
  if (!isList || !names.every(name => loraModules.includes(name as never)))
    fail('targetModules', JSON.stringify(targetModules), `all-linear, or some of ${loraModules.join(', ')}`)
  return { r, loraAlpha, useRslora, targetModules: loraModules.filter(name => names.includes(name)) }
}

export function nativeAdapter(shape: AdapterShape, rest: { file?: string; seed?: number }): NativeAdapter {
  const { r, loraAlpha, targetModules, useRslora } = shape
  return { r, targetModules, scaling: loraAlpha / (useRslora ? Math.sqrt(r) : r), seed: 0, ...rest }
}

const isRank = (value: unknown) =>
  Number.isSafeInteger(value) && Number(value) >= 1 && Number(value) <= MAX_RANK
const isAlpha = (value: unknown) => typeof value === 'number' && value > 0 && value < Infinity

/** Fields of adapter_config.json with another effect than that of their ordinary values, which the engine has not. */
const ordinary: Readonly<Record<string, (value: unknown) => boolean>> = {
  bias: value => value === 'none',
  fan_in_fan_out: isOff,
  init_lora_weights: value => typeof value === 'boolean' || value === 'gaussian' || value === 'orthogonal',
  use_dora: isOff,
  lora_bias: isOff,
  modules_to_save: isOff,
  rank_pattern: isOff,
  alpha_pattern: isOff,
  layers_to_transform: isOff,
  layers_pattern: isOff,
  layer_replication: isOff,
  exclude_modules: isOff,
  target_parameters: isOff,
  trainable_token_indices: isOff,
  alora_invocation_tokens: isOff,
  use_qalora: isOff,
  use_bdlora: isOff,
}

function isOff(value: unknown): boolean {
  return value === false || (typeof value === 'object' && Object.keys(value ?? {}).length === 0)
}

export interface StoredAdapter {
  readonly shape: AdapterShape
  readonly file: string
  /** The model that the adapter changes, by base_model_name_or_path and revision. */
  readonly baseModel?: string
}

/**
 * Reads adapter_config.json. Throws ERR_RAPO_FORMAT (no such file, a field of the wrong kind) and ERR_RAPO_UNSUPPORTED
 * (another kind of adapter than the engine has); the message names file, field and value.
 */
export function readAdapter(dir: string): StoredAdapter {
  const file = path.join(dir, configFile)
  if (!existsSync(dir)) throw new RapoError('ERR_RAPO_IO', `there is no directory ${withPlace(dir)}`)
  const config = readJson(file)
  if (!config)
    throw new RapoError('ERR_RAPO_FORMAT', `${dir} holds no adapter of PEFT: there is no ${configFile}`)
  const fail = (code: 'ERR_RAPO_FORMAT' | 'ERR_RAPO_UNSUPPORTED', field: string, expected: string): never => {
    const shown = JSON.stringify(config[field])
    throw new RapoError(code, `${file}: ${field} is ${shown}, expected ${expected}`)
  }
  if (config.peft_type !== 'LORA') fail('ERR_RAPO_UNSUPPORTED', 'peft_type', '"LORA"')
  for (const [field, isOrdinary] of Object.entries(ordinary)) {
    if (config[field] !== undefined && !isOrdinary(config[field]))
      fail('ERR_RAPO_UNSUPPORTED', field, "PEFT's default: rapo's adapters have low-rank terms alone")
  }
  const { r, lora_alpha: loraAlpha = 8, use_rslora: useRslora = false, target_modules: targets } = config
  if (!isRank(r)) fail('ERR_RAPO_FORMAT', 'r', `an integer in [1, ${MAX_RANK}]`)
  if (!isAlpha(loraAlpha)) fail('ERR_RAPO_FORMAT', 'lora_alpha', 'a number > 0')
  if (typeof useRslora !== 'boolean') fail('ERR_RAPO_FORMAT', 'use_rslora', 'true or false')
  // PEFT matches the end of a module's name, and writes all-linear as the whole names of all layers. An adapter of some
  // layers alone lacks tensors, which the engine says.
  const whole = /^((model\.)?layers\.\d+\.)?(self_attn|mlp)\./
  const bare = (name: unknown) => (typeof name === 'string' ? name.replace(whole, '') : '')
  const names = targets === 'all-linear' ? loraModules : targets
  if (
    !Array.isArray(names) ||
    names.length === 0 ||
    !names.every(name => loraModules.includes(bare(name) as never))
  )
    fail('ERR_RAPO_UNSUPPORTED', 'target_modules', `a list of some of ${loraModules.join(', ')}`)
  const wanted = (names as readonly unknown[]).map(bare)
  const { base_model_name_or_path: name, revision } = config
  const baseModel = typeof revision === 'string' && !existsSync(String(name)) ? `${name}@${revision}` : name
  return {
    shape: {
      ...{ r: r as number, loraAlpha: loraAlpha as number, useRslora: useRslora as boolean },
      targetModules: loraModules.filter(name => wanted.includes(name)),
    },
    file: path.join(dir, weightsFile),
    ...(typeof baseModel === 'string' && baseModel !== '' && { baseModel }),
  }
}

/**
 * The text of adapter_config.json.
 * @param baseModel a directory, or a name on the hub with or without @revision
 */
export function adapterConfigText(shape: AdapterShape, baseModel: string): string {
  const [, name = baseModel, revision = null] = /^([^/@]+\/[^/@]+)@(.+)$/.exec(baseModel) ?? []
  const config = {
    ...{ peft_type: 'LORA', task_type: 'CAUSAL_LM', base_model_name_or_path: name, revision },
    ...{ r: shape.r, lora_alpha: shape.loraAlpha, use_rslora: shape.useRslora },
    target_modules: shape.targetModules,
    ...{ lora_dropout: 0, bias: 'none', fan_in_fan_out: false, init_lora_weights: true },
    ...{ modules_to_save: null, inference_mode: true },
  }
  return `${JSON.stringify(config, null, 2)}\n`
}
