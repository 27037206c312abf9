/** Text to token ids and back: the model's own tokenizer, and the template around a problem's prompt. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { Template as ChatTemplate } from '@huggingface/jinja'
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers'
import { RapoError } from '../base/errors.js'
import type { ModelInfo } from '../model/engine.js'
import { type DataOptions, type Problem, settleUnusable } from './problems.js'

/** What rapo needs of a tokenizer. */
export interface Tokenizer {
  /** No special tokens are added; those spelled out in the text become their ids. Throws ERR_RAPO_DATA for a character it does not know. */
  encode(text: string): number[]
  /** Special tokens show up as their text. */
  decode(tokenIds: ArrayLike<number>): string
  /** The id of a token by its text, such as <|im_end|>. */
  tokenId(token: string): number | undefined
  /** The largest id it can produce. */
  readonly maxId: number
}

/** What a model directory holds beside the weights that a checkpoint must carry along. */
const tokenizerFiles = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'generation_config.json',
  'chat_template.jinja',
  'vocab.json',
  'merges.txt',
]

export function hasTokenizer(modelDir: string): boolean {
  return existsSync(path.join(modelDir, 'tokenizer.json'))
}

/** Loads tokenizer.json of a model directory. Throws ERR_RAPO_FORMAT where it is missing or broken. */
export function loadTokenizer(modelDir: string): Tokenizer {
  const file = path.join(modelDir, 'tokenizer.json')
  if (!existsSync(file)) {
    throw new RapoError('ERR_RAPO_FORMAT', `there is no ${file}: a model directory needs its tokenizer`)
  }
  const config = readJson(path.join(modelDir, 'tokenizer_config.json')) ?? {}
  let tokenizer: HuggingFaceTokenizer
  try {
    tokenizer = new HuggingFaceTokenizer(readJson(file)!, config)
  } catch (cause) {
    if (cause instanceof RapoError) throw cause
    throw new RapoError('ERR_RAPO_FORMAT', `${file} is no usable tokenizer: ${(cause as Error).message}`, {
      cause,
    })
  }
  const unknownToken = tokenizer.model?.unk_token
  const unknownId = unknownToken === undefined ? undefined : tokenizer.token_to_id(unknownToken)
  return {
    encode(text) {
      const { ids } = tokenizer.encode(text, { add_special_tokens: false })
      for (const [i, id] of ids.entries()) {
        if (id === undefined || (id === unknownId && !text.includes(unknownToken!))) {
          throw new RapoError(
            'ERR_RAPO_DATA',
            `the tokenizer ${file} has no token for part of ${JSON.stringify(text)} (after ${i} tokens: ${JSON.stringify(i ? tokenizer.decode(ids.slice(0, i)) : '')})`,
          )
        }
      }
      return ids
    },
    decode(tokenIds) {
      if (tokenIds.length === 0) return ''
      // Cleaning up would change the text (it drops spaces before punctuation).
      return tokenizer.decode(Array.from(tokenIds), { clean_up_tokenization_spaces: false })
    },
    tokenId: token => tokenizer.token_to_id(token),
    // Not spread into Math.max: a vocabulary has more words than a call takes arguments.
    maxId: [...tokenizer.get_vocab(true).values()].reduce((a, b) => Math.max(a, b), -1),
  }
}

/** Throws ERR_RAPO_FORMAT where the tokenizer can produce an id that the model has no embedding for. */
export function checkTokenizerFits(tokenizer: Tokenizer, info: ModelInfo, modelDir: string): void {
  if (tokenizer.maxId >= info.vocabSize) {
    throw new RapoError(
      'ERR_RAPO_FORMAT',
      `the tokenizer in ${modelDir} does not fit the model: it has the token id ${tokenizer.maxId}, the model's vocabulary ends at ${info.vocabSize - 1}`,
    )
  }
}

/**
 * The ids that end a completion: eos_token_id of generation_config.json, else of config.json, else the tokenizer's
 * eos_token. Empty where none is declared.
 */
export function readStopTokenIds(modelDir: string): number[] {
  for (const name of ['generation_config.json', 'config.json']) {
    const ids = [readJson(path.join(modelDir, name))?.eos_token_id ?? []].flat()
    if (ids.length > 0 && ids.every(id => Number.isSafeInteger(id))) return ids as number[]
  }
  const token = readJson(path.join(modelDir, 'tokenizer_config.json'))?.eos_token
  const content = typeof token === 'object' ? (token as { content?: unknown } | null)?.content : token
  if (typeof content !== 'string' || !hasTokenizer(modelDir)) return []
  const ids = loadTokenizer(modelDir).encode(content)
  return ids.length === 1 ? ids : []
}

/** Copies the files that make a checkpoint a whole model directory: tokenizer and generation settings. */
export function copyTokenizer(fromDir: string, toDir: string): void {
  for (const name of tokenizerFiles) {
    const file = path.join(fromDir, name)
    // Not copyFileSync: the copy of a read-only file would be read-only too.
    if (existsSync(file)) writeFileSync(path.join(toDir, name), readFileSync(file))
  }
}

/** Prompt styles by name: "{prompt}" stands for the problem, `stop` for what ends the model's turn besides its end of text. */
export const promptStyles = {
  /** Qwen2.5's chat with the request for a boxed answer, as SimpleRL trains its models (arXiv 2503.18892). */
  'qwen-boxed': {
    text:
      '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{prompt}\n' +
      'Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n',
    stop: ['<|im_end|>'],
  },
  /** For models that do not follow a chat. */
  abel: { text: "Question:\n{prompt}\nAnswer:\nLet's think step by step.\n", stop: [] },
} as const

export interface PromptTemplate {
  /** A problem's prompt with the text around it. */
  render(prompt: string): string
  /** Special tokens that end a completion, besides those of readStopTokenIds. */
  readonly stop: readonly string[]
}

/**
 * `data.template`: the name of a style in promptStyles, `chat` (the model's own chat template, with the prompt as the
 * user's message), or a text in which {prompt} stands for the prompt. Throws ERR_RAPO_FORMAT where the model has no
 * chat template, or one that does not work.
 */
export function createTemplate(template: string, modelDir: string): PromptTemplate {
  if (template === 'chat') return chatTemplate(modelDir)
  const style = Object.hasOwn(promptStyles, template)
    ? promptStyles[template as keyof typeof promptStyles]
    : { text: template, stop: [] }
  return { render: prompt => style.text.replaceAll('{prompt}', () => prompt), stop: style.stop }
}

function chatTemplate(modelDir: string): PromptTemplate {
  const config = readJson(path.join(modelDir, 'tokenizer_config.json')) ?? {}
  const file = path.join(modelDir, 'chat_template.jinja')
  const fault = (why: string, cause?: unknown) =>
    new RapoError('ERR_RAPO_FORMAT', `data.template is chat, but ${modelDir} ${why}`, { cause })
  let source: unknown = existsSync(file) ? readFileSync(file, 'utf8') : config.chat_template
  // Some models have several by name.
  if (Array.isArray(source)) source = source.find(entry => entry?.name === 'default')?.template
  if (typeof source !== 'string') {
    throw fault('has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)')
  }
  const token = (name: string) => {
    const value = config[name]
    return typeof value === 'object' ? ((value as { content?: unknown } | null)?.content ?? '') : value
  }
  const tokens = { bos_token: token('bos_token'), eos_token: token('eos_token') }
  const working = <T>(body: () => T): T => {
    try {
      return body()
    } catch (error) {
      throw fault(`has a chat template that does not work: ${(error as Error).message}`, error)
    }
  }
  const compiled = working(() => new ChatTemplate(source as string))
  const render = (prompt: string) =>
    working(() =>
      compiled.render({
        messages: [{ role: 'user', content: prompt }],
        add_generation_prompt: true,
        ...tokens,
      }),
    )
  // A template that would drop the problem, or that fails, does so before any work.
  if (!render('1 + 1').includes('1 + 1'))
    throw fault("has a chat template that leaves out the user's message")
  return { render, stop: typeof tokens.eos_token === 'string' && tokens.eos_token ? [tokens.eos_token] : [] }
}

/**
 * What ends a completion: readStopTokenIds and the template's own. Throws ERR_RAPO_FORMAT where the tokenizer lacks one
 * of the template's special tokens.
 */
export function stopTokenIdsFor(modelDir: string, tokenizer: Tokenizer, template: PromptTemplate): number[] {
  const ids = readStopTokenIds(modelDir)
  for (const token of template.stop) {
    const id = tokenizer.tokenId(token)
    if (id === undefined) {
      throw new RapoError(
        'ERR_RAPO_FORMAT',
        `the tokenizer in ${modelDir} has no token ${token}, which ends a completion in this data.template`,
      )
    }
    if (!ids.includes(id)) ids.push(id)
  }
  return ids
}

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
  const promptIds = atProblem(problem, () => tokenizer.encode(template.render(problem.prompt)))
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

/** undefined where the file does not exist; ERR_RAPO_FORMAT where it is not a JSON object. */
function readJson(file: string): Record<string, unknown> | undefined {
  if (!existsSync(file)) return undefined
  try {
    const value: unknown = JSON.parse(readFileSync(file, 'utf8'))
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
      return value as Record<string, unknown>
    }
  } catch (cause) {
    throw new RapoError('ERR_RAPO_FORMAT', `${file}: ${(cause as Error).message}`, { cause })
  }
  throw new RapoError('ERR_RAPO_FORMAT', `${file} must hold a JSON object`)
}
