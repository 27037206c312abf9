/** Problems as token ids that fit the model's context. */
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { plural } from '../base/text.js'
import type { ModelInfo } from '../model/policy.js'
import {
  createTemplate,
  type PromptTemplate,
  stopTokenIdsFor,
  type TemplateOptions,
} from '../model/template.js'
import { readJson, type Tokenizer } from '../model/tokenizer.js'
import type { DataOptions } from './fields.js'
import { type Problem, settleUnusable } from './problems.js'

/** The template of the section `data` for these problems. Throws as createTemplate does. */
export function templateFor(
  problems: readonly Problem[],
  data: { readonly template: string } & Pick<TemplateOptions, 'systemPrompt' | 'chatTemplateArguments'>,
  modelDir: string,
): PromptTemplate {
  const { template, systemPrompt, chatTemplateArguments } = data
  return createTemplate(template, modelDir, {
    hasConversations: problems.some(({ messages }) => messages !== undefined),
    ...(systemPrompt && { systemPrompt }),
    ...(chatTemplateArguments && { chatTemplateArguments }),
  })
}

/** A problem and its prompt as token ids. */
export interface EncodedPrompt {
  readonly problem: Problem
  readonly promptIds: readonly number[]
}

/**
 * A problem's prompt in the template, as token ids. Throws ERR_RAPO_DATA, which names the problem, if the prompt leaves no
 * room for maxNewTokens in the model's context.
 */
export function encodePrompt(problem: Problem, context: EncodeContext): EncodedPrompt {
  const prompt = encode(problem, context)
  const fault = fitFault(prompt, context)
  if (fault !== undefined) throw new RapoError('ERR_RAPO_DATA', `${placeOf(problem)}: ${fault}`)
  return prompt
}

/** Of any length. Throws a RapoError that names the problem. */
function encode(problem: Problem, { tokenizer, template }: Omit<EncodeContext, 'info'>): EncodedPrompt {
  try {
    const promptIds = tokenizer.encode(template.render(problem.messages ?? problem.prompt))
    if (promptIds.length === 0) throw new RapoError('ERR_RAPO_DATA', 'its prompt has no tokens')
    return { problem, promptIds }
  } catch (error) {
    if (!(error instanceof RapoError)) throw error
    throw new RapoError(error.code, `${placeOf(problem)}: ${error.message}`, { cause: error })
  }
}

type Room = Pick<EncodeContext, 'info' | 'maxNewTokens'>

/** Why a prompt leaves no room for a completion. */
function fitFault(
  { promptIds: { length } }: EncodedPrompt,
  { info, maxNewTokens }: Room,
): string | undefined {
  if (length + maxNewTokens <= info.maxPositionEmbeddings) return undefined
  return `its prompt of ${plural(length, 'token')} and sampling.maxNewTokens ${maxNewTokens} exceed the model's context of ${info.maxPositionEmbeddings}`
}

/**
 * The prompts that leave room for maxNewTokens in the context that the model's config.json declares; all prompts if it
 * declares none. Prompts that are too long are thus found before a model is loaded. Throws ERR_RAPO_DATA with the list of
 * the prompts that do not fit, unless data.dropUnusable says to drop them.
 */
export function fitContext(
  problems: readonly Problem[],
  modelDir: string,
  context: Omit<EncodeContext, 'info'>,
  options: DataOptions,
): EncodedPrompt[] {
  const declared = readJson(path.join(modelDir, 'config.json'))?.max_position_embeddings
  const info = { maxPositionEmbeddings: typeof declared === 'number' ? declared : Infinity }
  return usableOf(problems, problem => encode(problem, context), { ...context, info }, options)
}

/** fitContext with the template of the section `data`; and how the prompts were encoded, and what ends their completions. */
export function encodeProblems(
  problems: readonly Problem[],
  modelDir: string,
  tokenizer: Tokenizer,
  maxNewTokens: number,
  data: Parameters<typeof templateFor>[1] & DataOptions,
) {
  const template = templateFor(problems, data, modelDir)
  const stopTokenIds = stopTokenIdsFor(modelDir, tokenizer, template)
  const encode = { tokenizer, template, maxNewTokens }
  return { encode, stopTokenIds, fitting: fitContext(problems, modelDir, encode, data) }
}

/** The prompts of fitContext that also fit the loaded model's context. Throws as fitContext does. */
export function fitModel(
  prompts: readonly EncodedPrompt[],
  context: Room,
  options: DataOptions,
): EncodedPrompt[] {
  return usableOf(prompts, prompt => prompt, context, options)
}

function usableOf<T>(
  items: readonly T[],
  prepare: (item: T) => EncodedPrompt,
  room: Room,
  options: DataOptions,
): EncodedPrompt[] {
  const unusable: string[] = []
  const tooLong: number[] = []
  const prompts = items.flatMap(item => {
    let prompt: EncodedPrompt
    try {
      prompt = prepare(item)
    } catch (error) {
      if (!(error instanceof RapoError) || error.code !== 'ERR_RAPO_DATA') throw error
      unusable.push(error.message)
      return []
    }
    const fault = fitFault(prompt, room)
    if (fault === undefined) return [prompt]
    tooLong.push(prompt.promptIds.length)
    unusable.push(`${placeOf(prompt.problem)}: ${fault}`)
    return []
  })
  settleUnusable(unusable, items.length, options, adviseOnLength(tooLong, room))
  return prompts
}

/** The value of sampling.maxNewTokens with which prompts of these lengths would fit. */
function adviseOnLength(lengths: readonly number[], { info, maxNewTokens }: Room): string | undefined {
  if (lengths.length === 0) return undefined
  const longest = lengths.reduce((a, b) => Math.max(a, b))
  const room = info.maxPositionEmbeddings - longest
  if (room > 0) return `with sampling.maxNewTokens ≤ ${room} instead of ${maxNewTokens} all of them fit`
  return `the longest prompt alone has ${plural(longest, 'token')}`
}

/** What encodePrompt needs to turn a problem into token ids, and the length of the model's context. */
export interface EncodeContext {
  readonly tokenizer: Tokenizer
  readonly template: PromptTemplate
  readonly info: Pick<ModelInfo, 'maxPositionEmbeddings'>
  readonly maxNewTokens: number
}

const placeOf = ({ id }: Problem) => `problem "${id}"`
