/** `rapo generate` and `rapo logprobs`: the engine for scripts, one JSON object a line in and out (docs/files.md). */
import { RapoError } from '../base/errors.js'
import { type Line, parseJsonLines, readInput } from '../base/jsonl.js'
import { deriveSeed } from '../base/random.js'
import { packTokens } from '../model/batch.js'
import { checkModel } from '../model/directory.js'
import { openPolicy } from '../model/engine.js'
import { locateModel } from '../model/locate.js'
import type {
  CallOptions,
  LoadPolicy,
  ModelDType,
  Policy,
  PolicyOptions,
  SamplingParams,
} from '../model/policy.js'
import {
  checkTokenizerFits,
  hasTokenizer,
  loadTokenizer,
  readStopTokenIds,
  type Tokenizer,
} from '../model/tokenizer.js'
import { localEngine } from '../rollout/engine.js'
import { type LineOutput, openOutput } from './output.js'

export interface InferOptions extends CallOptions {
  readonly model: string
  /** A file; absent: standard input. */
  readonly input?: string
  /** A file; absent: standard output. */
  readonly output?: string
  readonly dtype?: ModelDType
  readonly device?: PolicyOptions['device']
  /** Default: the engine's. */
  readonly loadPolicy?: LoadPolicy
}

/** Completions of one call of the engine, unless one line wants more: what an interruption loses. */
const CALL_COMPLETIONS = 512

/**
 * Adds to each line { promptIds } or { prompt }: { completions: [{ tokenIds, logprobs, text, finishReason }] }. Lines are
 * written as they come. The first call samples with the seed itself, each later one with a seed from that.
 */
export async function generateLines(
  options: InferOptions,
  sampling: Omit<SamplingParams, 'stopTokenIds' | 'seed'> & { readonly seed: number },
): Promise<void> {
  await withModel(options, async (policy, tokenizer, lines, fault, write) => {
    const prompts = lines.map(({ value, number }) => {
      const ids = readTokens(value, 'prompt', tokenizer, policy, why => fault(number, why))
      checkContext(ids.length + sampling.maxNewTokens, policy, why => fault(number, why))
      return ids
    })
    const { n, maxNewTokens } = sampling
    const stopTokenIds = readStopTokenIds(options.model)
    const together = Math.max(1, Math.floor(CALL_COMPLETIONS / n))
    const engine = localEngine(policy)
    await engine.syncWeights(0, options)
    for (let first = 0; first < lines.length; first += together) {
      const seed = first === 0 ? sampling.seed : deriveSeed(sampling.seed, 'generate', first)
      const { onProgress } = options
      const { tokens, logprobs, finishReasons } = await engine.generate(
        packTokens(prompts.slice(first, first + together)),
        { ...sampling, seed, stopTokenIds },
        {
          ...options,
          ...(onProgress && {
            onProgress: done => onProgress(first * n * maxNewTokens + done, lines.length * n * maxNewTokens),
          }),
        },
      )
      const results = lines.slice(first, first + together).map(({ value }, row) => {
        const completions = Array.from({ length: n }, (_, sample) => {
          const i = row * n + sample
          const [start, end] = [tokens.offsets[i]!, tokens.offsets[i + 1]!]
          const tokenIds = [...tokens.tokenIds.subarray(start, end)]
          const finishReason = finishReasons[i]!
          const shown = finishReason === 'stop' ? tokenIds.slice(0, -1) : tokenIds
          const text = tokenizer ? tokenizer.decode(shown) : null
          return { tokenIds, logprobs: toNumbers(logprobs.subarray(start, end)), text, finishReason }
        })
        return { ...value, completions }
      })
      write(results)
    }
  })
}

/** Tokens of one call of the engine, where each line counts as the longest one. */
const CALL_TOKENS = 16384

/**
 * Adds to each line { promptIds, completionIds } or { prompt, completion }: { logprobs, entropy }, one number a
 * completion token, under softmax(logits / temperature).
 */
export async function logprobLines(options: InferOptions, temperature: number): Promise<void> {
  await withModel(options, async (policy, tokenizer, lines, fault, write) => {
    const rows = lines.map(({ value, number }) => {
      const why = (text: string) => fault(number, text)
      const promptIds = readTokens(value, 'prompt', tokenizer, policy, why)
      const completionIds = readTokens(value, 'completion', tokenizer, policy, why)
      checkContext(promptIds.length + completionIds.length, policy, why)
      return { promptIds, completionIds }
    })
    for (let first = 0; first < rows.length; ) {
      const chunk: typeof rows = []
      let longest = 0
      for (const row of rows.slice(first)) {
        longest = Math.max(longest, row.promptIds.length + row.completionIds.length)
        if (chunk.length > 0 && longest * (chunk.length + 1) > CALL_TOKENS) break
        chunk.push(row)
      }
      const sequences = packTokens(chunk.map(row => [...row.promptIds, ...row.completionIds]))
      const positions = chunk.flatMap((row, b) =>
        row.completionIds.map((_, t) => sequences.offsets[b]! + row.promptIds.length + t - 1),
      )
      const tokenIds = Int32Array.from(chunk.flatMap(row => row.completionIds))
      const { logprobs, entropy } = await policy.logprobs(
        sequences,
        { rowPositions: Int32Array.from(positions), tokenIds },
        temperature,
        options.signal ? { signal: options.signal } : {},
      )
      let start = 0
      const results = chunk.map(({ completionIds }, b) => {
        const end = start + completionIds.length
        const [own, ownEntropy] = [logprobs.subarray(start, end), entropy.subarray(start, end)]
        start = end
        return { ...lines[first + b]!.value, logprobs: toNumbers(own), entropy: toNumbers(ownEntropy) }
      })
      write(results)
      first += chunk.length
      options.onProgress?.(first, rows.length)
    }
  })
}

async function withModel(
  options: InferOptions,
  body: (
    policy: Policy,
    tokenizer: Tokenizer | undefined,
    lines: readonly Line[],
    fault: (line: number, why: string) => RapoError,
    write: LineOutput['write'],
  ) => Promise<void>,
): Promise<void> {
  const { input, dtype = 'float32', device = 'cpu' } = options
  const name = input ?? 'standard input'
  const output = openOutput(options.output)
  const lines = parseJsonLines(readInput(input ?? 0), name)
  if (lines.length === 0) throw new RapoError('ERR_RAPO_DATA', `${name} is empty`)
  const { modelDir: model, adapterDir } = await locateModel(
    options.model,
    options.signal ? { signal: options.signal } : {},
  )
  if (!options.loadPolicy) checkModel(model)
  const tokenizer = hasTokenizer(model) ? loadTokenizer(model) : undefined
  const policy = await openPolicy(
    model,
    { dtype, device, trainable: false, ...(adapterDir !== undefined && { adapterDir }) },
    0,
    options.loadPolicy,
  )
  try {
    if (tokenizer) checkTokenizerFits(tokenizer, policy.info, model)
    const fault = (line: number, why: string) =>
      new RapoError('ERR_RAPO_DATA', `${name}:${line}: line ${line}: ${why}`)
    await body(policy, tokenizer, lines, fault, output.write)
    output.finish()
  } catch (error) {
    throw output.fail(error)
  } finally {
    await policy.dispose()
  }
}

/** `${name}Ids` of a line, else its text `${name}` through the tokenizer. */
function readTokens(
  value: Line['value'],
  name: 'prompt' | 'completion',
  tokenizer: Tokenizer | undefined,
  { info }: Policy,
  fault: (why: string) => RapoError,
): number[] {
  const ids = value[`${name}Ids`]
  if (ids !== undefined) {
    const isId = (id: unknown) =>
      Number.isSafeInteger(id) && (id as number) >= 0 && (id as number) < info.vocabSize
    if (!Array.isArray(ids)) throw fault(`${name}Ids must be a list of token ids`)
    const wrong = ids.findIndex(id => !isId(id))
    if (wrong >= 0) {
      throw fault(
        `${name}Ids[${wrong}] is ${JSON.stringify(ids[wrong])}; it must be a token id from 0 to ${info.vocabSize - 1}`,
      )
    }
    if (name === 'prompt' && ids.length === 0) throw fault('promptIds must not be empty')
    return ids as number[]
  }
  const text = value[name]
  if (typeof text !== 'string')
    throw fault(`it must have ${name}Ids (a list of token ids) or ${name} (a text)`)
  if (!tokenizer)
    throw fault(`${name} is a text, but the model directory has no tokenizer.json: give ${name}Ids`)
  const encoded = encodeText(tokenizer, text, fault)
  if (name === 'prompt' && encoded.length === 0) throw fault('prompt must not be empty')
  return encoded
}

function encodeText(tokenizer: Tokenizer, text: string, fault: (why: string) => RapoError): number[] {
  try {
    return tokenizer.encode(text)
  } catch (error) {
    throw error instanceof RapoError ? fault(error.message) : error
  }
}

function checkContext(length: number, { info }: Policy, fault: (why: string) => RapoError): void {
  const context = info.maxPositionEmbeddings
  if (length > context)
    throw fault(`prompt and completion may take ${length} tokens; the model's context is ${context}`)
}

/** Float32 values in the fewest digits that read back to the same. */
function toNumbers(values: Float32Array): number[] {
  return Array.from(values, value => Number(value.toPrecision(9)))
}
