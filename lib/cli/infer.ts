/** `rapo generate` and `rapo logprobs`: the engine for scripts, one JSON object a line in and out (docs/files.md). */
import { RapoError } from '../base/errors.js'
import { readStandardInput } from '../base/jsonl.js'
import { deriveSeed } from '../base/random.js'
import { plural } from '../base/text.js'
import { type Column, chooseColumn } from '../data/fields.js'
import { messagesFault } from '../data/problems.js'
import { placeOf, type Row, readRows, rowsOfLines } from '../data/rows.js'
import { packTokens } from '../model/batch.js'
import { checkModel } from '../model/directory.js'
import { type OpenPolicyOptions, openPolicy } from '../model/engine.js'
import { type Located, locateModel } from '../model/locate.js'
import type {
  CallOptions,
  LoadPolicy,
  ModelDType,
  Policy,
  PolicyOptions,
  SamplingParams,
} from '../model/policy.js'
import { createTemplate, type Message, type PromptTemplate, stopTokenIdsFor } from '../model/template.js'
import {
  checkTokenizerFits,
  hasTokenizer,
  loadTokenizer,
  readStopTokenIds,
  type Tokenizer,
} from '../model/tokenizer.js'
import { localEngine, type RolloutEngine } from '../rollout/engine.js'
import { checkFilters, type EngineConfig, openEngine } from '../rollout/open.js'
import { knownText } from '../rollout/servers/checks.js'
import { type LineOutput, openOutput } from './output.js'

export interface InferOptions extends CallOptions {
  readonly model: string
  /** A problem file's formats; absent: JSON Lines from standard input. */
  readonly input?: string
  /** Output file. Absent: standard output. */
  readonly output?: string
  readonly dtype?: ModelDType
  readonly device?: PolicyOptions['device']
  /** CPU threads; 0 (default) leaves the number to libtorch. */
  readonly threads?: number
  /** data.template: the text around a prompt. Default {prompt}: none, and the model's chat template for conversations. */
  readonly template?: string
  readonly systemPrompt?: string
  readonly chatTemplateArguments?: Readonly<Record<string, unknown>> | undefined
  /** Column of the prompt. Default: the usual names of problem files. */
  readonly problemField?: string
  /** Told, in a text for people, what is being loaded. */
  readonly onNotice?: (text: string) => void
  /** As of openPolicy. */
  readonly onLoading?: OpenPolicyOptions['onLoading']
  /** Loads the model. Default: the engine's loadPolicy. */
  readonly loadPolicy?: LoadPolicy
}

/** Completions per call of the engine, unless one line asks for more. An interruption loses the completions of one call. */
const CALL_COMPLETIONS = 512

/** The lines, and what reads them. */
interface Job {
  readonly policy: Policy
  readonly model: Located
  readonly rows: readonly Row[]
  /** Token ids of a row's prompt, in the template, or of its completion. Throws ERR_RAPO_DATA naming the row. */
  readTokens(row: Row, part: Part): number[]
  readonly tokenizer: Tokenizer | undefined
  /** What ends a completion. */
  readonly stopTokenIds: readonly number[]
  readonly write: LineOutput['write']
}

/** What generateLines samples with. */
export type InferSampling = Required<
  Pick<SamplingParams, 'n' | 'maxNewTokens' | 'temperature' | 'topP' | 'topK' | 'minP'>
> & { readonly seed: number }

/** Servers that sample, and where the weights of an adapter are written for them. */
export type ServerOptions = Pick<EngineConfig, 'rollouts' | 'run'>

/**
 * Adds to each line { promptIds } or { prompt }: { completions: [{ tokenIds, logprobs, text, finishReason }] }. Lines are
 * written as soon as they are ready. The first call samples with the seed itself, each later call with a seed derived from it.
 */
export async function generateLines(
  options: InferOptions,
  sampling: InferSampling,
  servers?: ServerOptions,
): Promise<void> {
  if (servers) checkFilters({ ...servers, sampling })
  await withModel(options, ['prompt'], async job => {
    const { policy, rows, readTokens, tokenizer, stopTokenIds, write } = job
    const prompts = rows.map(row => {
      const ids = readTokens(row, 'prompt')
      checkContext(ids.length + sampling.maxNewTokens, policy, row)
      return ids
    })
    const { n, maxNewTokens } = sampling
    const together = Math.max(1, Math.floor(CALL_COMPLETIONS / n))
    const engine = await openFor(job, prompts, options, sampling, servers)
    try {
      for (let first = 0; first < rows.length; first += together) {
        const seed = first === 0 ? sampling.seed : deriveSeed(sampling.seed, 'generate', first)
        const { onProgress } = options
        const { tokens, logprobs, finishReasons } = await engine.generate(
          packTokens(prompts.slice(first, first + together)),
          { ...sampling, seed, stopTokenIds },
          {
            ...options,
            ...(onProgress && {
              onProgress: done => onProgress(first * n * maxNewTokens + done, rows.length * n * maxNewTokens),
            }),
          },
        )
        const results = rows.slice(first, first + together).map(({ value }, row) => {
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
    } finally {
      await engine.close()
    }
  })
}

/** The policy itself, or the servers. */
async function openFor(
  { policy, tokenizer, stopTokenIds, model }: Job,
  prompts: readonly (readonly number[])[],
  { onNotice, signal, dtype = 'float32', device = 'cpu' }: InferOptions,
  sampling: InferSampling,
  servers: ServerOptions | undefined,
): Promise<RolloutEngine> {
  const { modelDir, adapterDir } = model
  const fixedDir = adapterDir === undefined ? modelDir : undefined
  const text = tokenizer && knownText(tokenizer.decode(prompts[0]!), tokenizer)
  const engine = servers
    ? openEngine(
        { ...servers, sampling, model: { dtype, device } },
        { policy, modelDir, fixedDir, prompts, stopTokenIds, onNotice, text },
      )
    : localEngine(policy)
  try {
    await engine.syncWeights(0, { signal })
    return engine
  } catch (error) {
    await engine.close().catch(() => {})
    throw error
  }
}

/** Tokens per call of the engine. Each line counts as much as the longest line of the call. */
const CALL_TOKENS = 16384

/**
 * Adds to each line { promptIds, completionIds } or { prompt, completion }: { logprobs, entropy }, one number a
 * completion token, under softmax(logits / temperature).
 */
export async function logprobLines(options: InferOptions, temperature: number): Promise<void> {
  await withModel(options, ['prompt', 'completion'], async ({ policy, rows, readTokens, write }) => {
    const sequencesOf = rows.map(row => {
      const promptIds = readTokens(row, 'prompt')
      const completionIds = readTokens(row, 'completion')
      checkContext(promptIds.length + completionIds.length, policy, row)
      return { promptIds, completionIds }
    })
    for (let first = 0; first < rows.length; ) {
      const chunk: typeof sequencesOf = []
      let longest = 0
      for (const row of sequencesOf.slice(first)) {
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
        return { ...rows[first + b]!.value, logprobs: toNumbers(own), entropy: toNumbers(ownEntropy) }
      })
      write(results)
      first += chunk.length
      options.onProgress?.(first, rows.length)
    }
  })
}

async function withModel(
  options: InferOptions,
  parts: readonly Part[],
  body: (job: Job) => Promise<void>,
): Promise<void> {
  const { input, dtype = 'float32', device = 'cpu', threads = 0, problemField } = options
  const { template: text = '{prompt}', systemPrompt, chatTemplateArguments } = options
  const name = input ?? 'standard input'
  const output = openOutput(options.output)
  const rows =
    input === undefined
      ? rowsOfLines(await readStandardInput(options.signal), name)
      : await readRows(input, { field: '--input' })
  if (rows.length === 0) throw new RapoError('ERR_RAPO_DATA', `${name} is empty`)
  const located = await locateModel(options.model, options.signal ? { signal: options.signal } : {})
  const { modelDir: model, adapterDir } = located
  if (!options.loadPolicy) checkModel(model, '--model')
  const tokenizer = hasTokenizer(model) ? loadTokenizer(model) : undefined
  const column = chooseColumn('problem', rows, name, problemField)
  // Before the model is loaded, which takes long.
  for (const row of rows) for (const part of parts) partOf(row, part, { tokenizer, column })
  const hasConversations = rows.some(({ value }) => Array.isArray(column.valueIn(value)))
  const template = createTemplate(text, model, {
    hasConversations,
    ...(systemPrompt && { systemPrompt }),
    ...(chatTemplateArguments && { chatTemplateArguments }),
  })
  const stopTokenIds =
    tokenizer && template.stop.length > 0
      ? stopTokenIdsFor(model, tokenizer, template)
      : readStopTokenIds(model)
  const policy = await openPolicy(
    model,
    { dtype, device, trainable: false, ...(adapterDir !== undefined && { adapterDir }) },
    threads,
    options,
  )
  try {
    if (tokenizer) checkTokenizerFits(tokenizer, policy.info, model)
    const reader = { tokenizer, column, template, vocabSize: policy.info.vocabSize }
    const readTokens: Job['readTokens'] = (row, part) => tokensOf(row, part, reader)
    await body({ policy, model: located, rows, readTokens, tokenizer, stopTokenIds, write: output.write })
    output.finish()
  } catch (error) {
    throw output.fail(error)
  } finally {
    await policy.dispose()
  }
}

const faultAt = (row: Row, why: string) => new RapoError('ERR_RAPO_DATA', `${placeOf(row)}: ${why}`)

type Part = 'prompt' | 'completion'

interface Reader {
  readonly tokenizer: Tokenizer | undefined
  readonly column: Column
  readonly template: PromptTemplate
  readonly vocabSize: number
}

/** `${part}Ids` of a row, or its text or conversation. Throws ERR_RAPO_DATA where the row has neither. */
function partOf(row: Row, part: Part, { tokenizer, column }: Pick<Reader, 'tokenizer' | 'column'>) {
  const { value } = row
  const idsField = `${part}Ids`
  const ids = value[idsField]
  if (ids !== undefined) {
    if (!Array.isArray(ids)) throw faultAt(row, `${idsField} must be a list of token ids`)
    return { ids }
  }
  const name = part === 'prompt' ? column.name : part
  const given = part === 'prompt' ? column.valueIn(value) : value[part]
  const isChat = part === 'prompt' && Array.isArray(given)
  const chatFault = isChat ? messagesFault(given) : undefined
  if (chatFault) throw faultAt(row, `${name} ${chatFault}`)
  if (typeof given !== 'string' && !isChat) {
    throw faultAt(row, `the row must have ${idsField} (a list of token ids) or ${name} (a text)`)
  }
  if (!tokenizer) {
    throw faultAt(row, `${name} is a text, but the model directory has no tokenizer.json: give ${idsField}`)
  }
  return { name, given: given as string | Message[], tokenizer }
}

/** `${part}Ids` of a row; else its prompt through template and tokenizer, or its completion through the tokenizer. */
function tokensOf(row: Row, part: Part, reader: Reader): number[] {
  const { template, vocabSize } = reader
  const found = partOf(row, part, reader)
  if ('ids' in found) {
    const { ids } = found
    const idsField = `${part}Ids`
    const isId = (id: unknown) =>
      Number.isSafeInteger(id) && (id as number) >= 0 && (id as number) < vocabSize
    const wrong = ids.findIndex(id => !isId(id))
    if (wrong >= 0) {
      throw faultAt(
        row,
        `${idsField}[${wrong}] is ${JSON.stringify(ids[wrong])}; it must be a token id from 0 to ${vocabSize - 1}`,
      )
    }
    if (part === 'prompt' && ids.length === 0) throw faultAt(row, 'promptIds must not be empty')
    return ids as number[]
  }
  const { name, given, tokenizer } = found
  let encoded: number[]
  try {
    const text = part === 'prompt' ? template.render(given) : (given as string)
    encoded = tokenizer.encode(text)
  } catch (error) {
    throw error instanceof RapoError ? faultAt(row, error.message) : error
  }
  if (part === 'prompt' && encoded.length === 0) throw faultAt(row, `${name} must not be empty`)
  return encoded
}

function checkContext(length: number, { info }: Policy, row: Row): void {
  const context = info.maxPositionEmbeddings
  if (length <= context) return
  throw faultAt(
    row,
    `prompt and completion may take ${plural(length, 'token')}; the model's context is ${context}`,
  )
}

/** Float32 values with the fewest digits that give the same float32 when read again. */
function toNumbers(values: Float32Array): number[] {
  return Array.from(values, value => Number(value.toPrecision(9)))
}
