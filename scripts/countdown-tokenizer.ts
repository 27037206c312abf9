/**
 * The bundled model's tokenizer, with one token per character. It has the form of Qwen2's tokenizer (byte-level, with Qwen2's
 * splitting rule), because transformers rebuilds the tokenizer of every qwen2 model in that form from the vocabulary and the
 * merges.
 */
import { writeFileSync } from 'node:fs'
import path from 'node:path'

const splitRule =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
const special = ['<pad>', '<eos>', '<unk>']
/** Ġ stands for a space in byte-level spelling. */
const characters = [...'0123456789+-*/()=Ġ:']
const tokens = [...special, ...characters]

export const vocabSize = tokens.length
export const padId = 0
export const eosId = 1

/** Writes tokenizer.json, tokenizer_config.json and generation_config.json. */
export function writeTokenizer(dir: string): void {
  const write = (name: string, value: object) =>
    writeFileSync(path.join(dir, name), `${JSON.stringify(value, null, 2)}\n`)
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true }
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false }
  write('tokenizer.json', {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: special.map((content, id) => ({ id, content, ...flags })),
    normalizer: { type: 'NFC' },
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: splitRule }, behavior: 'Isolated', invert: false },
        byteLevel,
      ],
    },
    post_processor: null,
    decoder: byteLevel,
    // Byte-pair encoding without merges keeps every character separate.
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: '<unk>',
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: [],
    },
  })
  write('tokenizer_config.json', {
    tokenizer_class: 'Qwen2Tokenizer',
    clean_up_tokenization_spaces: false,
    pad_token: '<pad>',
    eos_token: '<eos>',
    unk_token: '<unk>',
    model_max_length: 64,
  })
  write('generation_config.json', { eos_token_id: eosId, pad_token_id: padId, do_sample: true })
}
