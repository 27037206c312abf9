/** Problems as token ids that fit the model's context. */
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import type { ModelInfo } from '../model/policy.js'
import { createTemplate, type PromptTemplate, type TemplateOptions } from '../model/template.js'
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
 * A problem's prompt in the template, as token ids. Throws ERR_RAPO_DATA, naming the
 * problem, where it leaves no room for maxNewTokens in the model's context.
 */
export function encodePrompt(problem: Problem, context: EncodeContext): EncodedPrompt {
  const { tokenizer, template } = context
  const promptIds = atProblem(problem, () =>
    tokenizer.encode(template.render(problem.messages ?? problem.prompt)),
  )
  if (promptIds.length === 0) throw new RapoError('ERR_RAPO_DATA', `problem "${problem.id}": no tokens`)
  return checkFits({ problem, promptIds }, context)
}

function checkFits(
  prompt: EncodedPrompt,
  { info, maxNewTokens }: Pick<EncodeContext, 'info' | 'maxNewTokens'>,
): EncodedPrompt {
  const { length } = prompt.promptIds
  if (length + maxNewTokens <= info.maxPositionEmbeddings) return prompt
  throw new RapoError(
    'ERR_RAPO_DATA',
    `problem "${prompt.problem.id}": its prompt of ${length} tokens and sampling.maxNewTokens ${maxNewTokens} exceed the model's context of ${info.maxPositionEmbeddings}`,
  )
}

/**
 * The prompts that leave room for maxNewTokens in the context that the model's config.json declares, so that too long
 * ones are found before a model is loaded; all where it declares none. Throws ERR_RAPO_DATA with the list of those that
 * do not fit, unless they are to be dropped.
 */
export function fitContext(
  problems: readonly Problem[],
  modelDir: string,
  context: Omit<EncodeContext, 'info'>,
  options: DataOptions,
): EncodedPrompt[] {
  const declared = readJson(path.join(modelDir, 'config.json'))?.max_position_embeddings
  const info = { maxPositionEmbeddings: typeof declared === 'number' ? declared : Infinity }
  return usableOf(problems, problem => encodePrompt(problem, { ...context, info }), options)
}

/** Those of fitContext that fit the loaded model's context, too. Throws as that does. */
export function fitModel(
  prompts: readonly EncodedPrompt[],
  context: Pick<EncodeContext, 'info' | 'maxNewTokens'>,
  options: DataOptions,
): EncodedPrompt[] {
  return usableOf(prompts, prompt => checkFits(prompt, context), options)
}

function usableOf<T>(
  items: readonly T[],
  prepare: (item: T) => EncodedPrompt,
  options: DataOptions,
): EncodedPrompt[] {
  const unusable: string[] = []
  const prompts = items.flatMap(item => {
    try {
      return prepare(item)
    } catch (error) {
      if (!(error instanceof RapoError) || error.code !== 'ERR_RAPO_DATA') throw error
      unusable.push(error.message)
      return []
    }
  })
  settleUnusable(unusable, items.length, options)
  if (prompts.length === 0) throw new RapoError('ERR_RAPO_DATA', 'no problem fits the context')
  return prompts
}

/** What turns a problem into token ids, and the room there is for them. */
export interface EncodeContext {
  readonly tokenizer: Tokenizer
  readonly template: PromptTemplate
  readonly info: Pick<ModelInfo, 'maxPositionEmbeddings'>
  readonly maxNewTokens: number
}

function atProblem<T>(problem: Problem, body: () => T): T {
  try {
    return body()
  } catch (error) {
    if (!(error instanceof RapoError)) throw error
    throw new RapoError(error.code, `problem "${problem.id}": ${error.message}`, { cause: error })
  }
}
