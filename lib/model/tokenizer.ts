/** The model's own tokenizer, read from its Hugging Face files. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers'
import { RapoError } from '../base/errors.js'
import { isLfsPointer, lfsMessage } from '../base/lfs.js'
import { plural } from '../base/text.js'
import type { ModelInfo } from './policy.js'

/** What rapo needs of a tokenizer. */
export interface Tokenizer {
  /** No special tokens are added; those spelled out in the text become their ids. Throws ERR_RAPO_DATA for a character that it does not know, drops or changes. */
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
  const decode = (tokenIds: ArrayLike<number>) =>
    // Cleaning up would change the text (it drops spaces before punctuation).
    tokenIds.length === 0
      ? ''
      : tokenizer.decode(Array.from(tokenIds), { clean_up_tokenization_spaces: false })
  return {
    encode(text) {
      const { ids } = tokenizer.encode(text, { add_special_tokens: false })
      for (const [i, id] of ids.entries()) {
        if (id === undefined || (id === unknownId && !text.includes(unknownToken!))) {
          throw new RapoError(
            'ERR_RAPO_DATA',
            `the tokenizer ${file} has no token for part of ${JSON.stringify(text)} (after ${plural(i, 'token')}: ${JSON.stringify(i ? tokenizer.decode(ids.slice(0, i)) : '')})`,
          )
        }
      }
      const again = decode(ids)
      if (bare(again) !== bare(text)) throw changedError(file, text, again)
      return ids
    },
    decode,
    tokenId: token => tokenizer.token_to_id(token),
    // Not spread into Math.max: a vocabulary has more words than a call takes arguments.
    maxId: [...tokenizer.get_vocab(true).values()].reduce((a, b) => Math.max(a, b), -1),
  }
}

/** A text without what tokenizers change on purpose: white space, upper case, and composed forms of characters. */
function bare(text: string): string {
  return text.normalize('NFKC').toLowerCase().normalize('NFKC').replaceAll(/\s+/g, '')
}

function changedError(file: string, text: string, again: string): RapoError {
  let at = 0
  while (at < text.length && text[at] === again[at]) at++
  const show = (whole: string) => JSON.stringify(whole.slice(Math.max(0, at - 10), at + 20))
  return new RapoError(
    'ERR_RAPO_DATA',
    `the tokenizer ${file} drops or changes characters: ${show(text)} reads back as ${show(again)}`,
  )
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
 * eos_token. Empty where none is declared; -1 declares none. Throws ERR_RAPO_FORMAT, naming the file, for an id beyond the
 * vocabulary that config.json declares.
 */
export function readStopTokenIds(modelDir: string): number[] {
  const vocabSize = readJson(path.join(modelDir, 'config.json'))?.vocab_size
  for (const name of ['generation_config.json', 'config.json']) {
    const file = path.join(modelDir, name)
    const declared = [readJson(file)?.eos_token_id ?? []].flat().filter(id => id !== -1)
    if (declared.length === 0 || !declared.every(id => Number.isSafeInteger(id))) continue
    const ids = declared as number[]
    const wrong = ids.find(id => id < 0 || (typeof vocabSize === 'number' && id >= vocabSize))
    if (wrong === undefined) return ids
    throw new RapoError(
      'ERR_RAPO_FORMAT',
      `${file}: eos_token_id has ${wrong}, outside the model's vocabulary of ${vocabSize} tokens`,
    )
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

/** undefined where the file does not exist; ERR_RAPO_FORMAT where it is not a JSON object. */
export function readJson(file: string): Record<string, unknown> | undefined {
  if (!existsSync(file)) return undefined
  try {
    const text = readFileSync(file, 'utf8')
    if (isLfsPointer(text)) throw new RapoError('ERR_RAPO_FORMAT', lfsMessage(file))
    const value: unknown = JSON.parse(text)
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
      return value as Record<string, unknown>
    }
  } catch (cause) {
    if (cause instanceof RapoError) throw cause
    throw new RapoError('ERR_RAPO_FORMAT', `${file}: ${(cause as Error).message}`, { cause })
  }
  throw new RapoError('ERR_RAPO_FORMAT', `${file} must hold a JSON object`)
}
