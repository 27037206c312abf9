/** The text around a problem's prompt: named styles, the model's chat template, or a text of the user's. */
import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { Template as ChatTemplate } from '@huggingface/jinja'
import { RapoError } from '../base/errors.js'
import { readJson, readStopTokenIds, type Tokenizer } from './tokenizer.js'

/** Prompt styles by name. "{prompt}" stands for the problem; `stop` lists tokens that end the model's turn besides its end of text. */
export const promptStyles = {
  /** Qwen2.5's chat with the request for a boxed answer, as SimpleRL trains its models (arXiv 2503.18892). */
  'qwen-boxed': {
    text:
      '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{prompt}\n' +
      'Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n',
    stop: ['<|im_end|>'],
  },
  /** For models that do not follow a chat format. */
  abel: { text: "Question:\n{prompt}\nAnswer:\nLet's think step by step.\n", stop: [] },
} as const

/** A turn of a conversation. */
export interface Message {
  /** system, user, assistant, or another role that the model's template knows. */
  readonly role: string
  readonly content: string
}

/** The text around a prompt. */
export interface PromptTemplate {
  /** Returns the prompt with the text around it. Throws ERR_RAPO_DATA for a conversation that needs a chat template. */
  render(prompt: string | readonly Message[]): string
  /** Special tokens that end a completion, besides those of readStopTokenIds. */
  readonly stop: readonly string[]
}

/** Options of createTemplate; all but hasConversations are for chat templates. */
export interface TemplateOptions {
  /** The system's message for conversations that have none. */
  readonly systemPrompt?: string
  /** Further variables of the chat template, such as { enable_thinking: false } for Qwen3. */
  readonly chatTemplateArguments?: Readonly<Record<string, unknown>> | undefined
  /** True if some prompt is a conversation. The default template `{prompt}` then means `chat`. */
  readonly hasConversations?: boolean
}

/**
 * `data.template`: the name of a style in promptStyles, `chat` (the model's own chat template, with a text as the user's
 * message), or a text in which {prompt} stands for the prompt. Throws ERR_RAPO_FORMAT where the model has no chat
 * template, or one that does not work.
 */
export function createTemplate(
  template: string,
  modelDir: string,
  options: TemplateOptions = {},
): PromptTemplate {
  if (template === 'chat') return chatTemplate(modelDir, options, 'data.template is chat')
  if (template === '{prompt}' && options.hasConversations)
    return chatTemplate(modelDir, options, 'the prompts are lists of messages')
  const style = Object.hasOwn(promptStyles, template)
    ? promptStyles[template as keyof typeof promptStyles]
    : { text: template, stop: [] }
  return {
    render: prompt => style.text.replaceAll('{prompt}', () => onlyUserText(prompt)),
    stop: style.stop,
  }
}

function onlyUserText(prompt: string | readonly Message[]): string {
  if (typeof prompt === 'string') return prompt
  const [only, ...others] = prompt
  if (only?.role === 'user' && others.length === 0) return only.content
  throw new RapoError(
    'ERR_RAPO_DATA',
    `its prompt has the messages ${prompt.map(({ role }) => role).join(', ')}, which only data.template: chat can render`,
  )
}

/** Variables of a chat template that chatTemplateArguments may not set. */
export const reservedArguments = ['messages', 'add_generation_prompt']

function chatTemplate(
  modelDir: string,
  { systemPrompt = '', chatTemplateArguments = {} }: TemplateOptions,
  why: string,
): PromptTemplate {
  const reserved = reservedArguments.find(name => name in chatTemplateArguments)
  if (reserved !== undefined)
    throw new RapoError('ERR_RAPO_INVALID_ARGUMENT', `chatTemplateArguments may not set ${reserved}`)
  const config = readJson(path.join(modelDir, 'tokenizer_config.json')) ?? {}
  const file = path.join(modelDir, 'chat_template.jinja')
  const fault = (what: string, cause?: unknown) =>
    new RapoError('ERR_RAPO_FORMAT', `${why}, but ${modelDir} ${what}`, { cause })
  let source: unknown = existsSync(file) ? readFileSync(file, 'utf8') : config.chat_template
  // Some models have several templates with names.
  if (Array.isArray(source)) source = source.find(entry => entry?.name === 'default')?.template
  if (typeof source !== 'string') {
    throw fault('has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)')
  }
  const text = source
  const working = <T>(body: () => T): T => {
    try {
      return body()
    } catch (error) {
      throw fault(`has a chat template that does not work: ${(error as Error).message}`, error)
    }
  }
  const compiled = working(() => new ChatTemplate(text))
  const tokens = specialTokens(config)
  const renderMessages = (messages: readonly Message[], isPrompt = true) =>
    // The variables that transformers' apply_chat_template passes to a template.
    compiled.render({
      ...tokens,
      ...{ tools: null, documents: null, ...chatTemplateArguments },
      ...{ messages, add_generation_prompt: isPrompt },
    })
  const render = (prompt: string | readonly Message[]) => {
    const given = typeof prompt === 'string' ? [{ role: 'user', content: prompt }] : prompt
    const isWhole = systemPrompt === '' || given.some(({ role }) => role === 'system')
    const messages = isWhole ? given : [{ role: 'system', content: systemPrompt }, ...given]
    return working(() => renderMessages(messages))
  }
  // A template that drops the problem, or fails, is found here, before any work.
  if (!render('1 + 1').includes('1 + 1')) {
    const cause = /\{%-?\s*break\b/.test(text)
      ? ' ({% break %} may be the cause: @huggingface/jinja drops what the loop wrote in that turn)'
      : ''
    throw fault(`has a chat template that leaves out the user's message${cause}`)
  }
  const ends = [tokens.eos_token, endOfTurn(modelDir, renderMessages)]
  const stop = ends.filter((token): token is string => typeof token === 'string' && token !== '')
  return { render, stop: [...new Set(stop)] }
}

const singleTokens = [
  'bos_token',
  'eos_token',
  'unk_token',
  'sep_token',
  'pad_token',
  'cls_token',
  'mask_token',
]

/** Special tokens of tokenizer_config.json by the names that templates use. A token may be an object there. */
function specialTokens(config: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const textOf = (value: unknown) =>
    typeof value === 'object' && value !== null ? (value as { content?: unknown }).content : value
  const single = singleTokens.map(name => [name, textOf(config[name])])
  const more = config.additional_special_tokens
  return {
    ...Object.fromEntries(single.filter(([, token]) => typeof token === 'string')),
    ...(Array.isArray(more) && { additional_special_tokens: more.map(textOf) }),
  }
}

/**
 * The special token that the template puts after an assistant's message, such as <|im_end|>. A chat model ends its turn with
 * this token, even if the files of its base model do not say so. undefined if there is no such token.
 */
function endOfTurn(
  modelDir: string,
  render: (messages: readonly Message[], isPrompt: boolean) => string,
): string | undefined {
  const content = 'Two.'
  let rendered: string
  try {
    rendered = render(
      [
        { role: 'user', content: '1 + 1' },
        { role: 'assistant', content },
      ],
      false,
    )
  } catch {
    return undefined // a template for prompts alone
  }
  const at = rendered.lastIndexOf(content)
  if (at < 0) return undefined
  const behind = rendered.slice(at + content.length).trimStart()
  const added = readJson(path.join(modelDir, 'tokenizer.json'))?.added_tokens
  const special = (Array.isArray(added) ? added : []).filter(token => token?.special === true)
  return special
    .map(token => String(token.content))
    .filter(token => token !== '' && behind.startsWith(token))
    .sort((a, b) => b.length - a.length)[0]
}

/** For a message: a token of the vocabulary that ends a text, going by its name. */
function likelyEnd(modelDir: string): string {
  const added = readJson(path.join(modelDir, 'tokenizer.json'))?.added_tokens
  const found = (Array.isArray(added) ? added : []).find(token =>
    /^(<\|endoftext\|>|<\|im_end\|>|<\/s>|<eos>|<\|eot_id\|>)$/.test(String(token?.content)),
  )
  return found ? `, such as ${found.id} (${found.content})` : ''
}

/**
 * The ids of the tokens that end a completion: those of readStopTokenIds and those of the template. Throws ERR_RAPO_FORMAT if
 * the tokenizer lacks one of the template's special tokens, or if there is no token that ends a completion.
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
  if (ids.length === 0) {
    throw new RapoError(
      'ERR_RAPO_FORMAT',
      `nothing ends a completion of the model in ${modelDir}: generation_config.json and config.json have no eos_token_id, tokenizer_config.json has no eos_token, and data.template adds none. Set eos_token_id in generation_config.json to the id of the token that ends a text${likelyEnd(modelDir)}`,
    )
  }
  return ids
}
