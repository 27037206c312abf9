/** The text around a problem's prompt: named styles, the model's chat template, or a text of the user's. */
import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { Template as ChatTemplate } from '@huggingface/jinja'
import { RapoError } from '../base/errors.js'
import { readJson, readStopTokenIds, type Tokenizer } from './tokenizer.js'

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
