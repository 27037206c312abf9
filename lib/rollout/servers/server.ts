/** What the rollout engine asks of an inference server, and what every answer is checked for. */
import { RapoError } from '../../base/errors.js'
import type { Completion } from '../../model/batch.js'
import type { SamplingParams } from '../../model/policy.js'

/** Sampling of one prompt. */
export interface PromptSampling extends Omit<SamplingParams, 'seed' | 'maxBatch'> {
  /** Absent: the server draws its own. Sample i of the prompt has seed + i. */
  readonly seed?: number
  /** Whether the names of the weights that sampled each token are wanted. */
  readonly withWeights?: boolean
  /** Servers of adapters: the name of the adapter to sample with, as load gave it. */
  readonly adapter?: string
}

/** Tokens from `start` up to `end` of a completion, and the name of the weights that sampled them, as load gave it. */
export interface WeightSpan {
  readonly name: string
  readonly start: number
  readonly end: number
}

/** A completion; with PromptSampling.withWeights, where the server tells, also its weights. */
export interface ServerCompletion extends Completion {
  readonly weights?: readonly WeightSpan[]
}

/** What a server says of itself. */
export interface ServerFacts {
  /** Of vLLM or SGLang. */
  readonly release: string
  /** The name under which requests find the model. */
  readonly model: string
  /** Tokens of a prompt with its completion. */
  readonly maxModelLen: number
  /** Where it cannot be given weights: what must be done so that it can, as a sentence. */
  readonly refusesWeights?: string
  /** It answers no request for completions until it is given weights, or resumed by whoever paused it. */
  readonly isPaused?: boolean
}

/** How long a call may take, and what ends it before. */
export interface ServerCall {
  readonly signal?: AbortSignal | undefined
  readonly timeoutSeconds: number
}

/** What a server's workers need to join a group in which this process is rank 0. */
export interface GroupPlace {
  readonly name: string
  /** Rank of the server's first worker. */
  readonly rankOffset: number
  readonly worldSize: number
  /** NCCL's id, 128 bytes. */
  readonly id: Uint8Array
  /** Where the store of the group listens. */
  readonly port: number
  readonly backend: 'nccl' | 'gloo'
  /** See BroadcastGroup.broadcast. */
  readonly packedBytes: number
}

/** What a server is asked in the course of an update by broadcasts. Calls throw as those of InferenceServer. */
export interface Receiver {
  /** Whether its workers find the group in torch's store; else by NCCL's id. */
  readonly usesStore: boolean
  /** The address at which the server can reach this host. */
  address(): string
  /** See BroadcastGroup.broadcast. */
  readonly packedBytes: number
  /** One call of receive announces tensors of so many bytes at most, or a single one. */
  readonly requestBytes: number
  /** The number of its workers, each a rank. */
  workers(call: ServerCall): Promise<number>
  /** Answered when the group is whole. */
  join(place: GroupPlace, call: ServerCall): Promise<void>
  /** Before the first broadcast of an update: requests under way are finished, or frozen with isInFlight. */
  begin(call: ServerCall & { readonly isInFlight: boolean }): Promise<void>
  /** Announces tensors that are about to be broadcast. Answered when they have been loaded. */
  receive(part: AnnouncedTensors, call: ServerCall): Promise<void>
  /** After the last one: names the weights, drops the caches of those before, and goes on. */
  finish(name: string, call: ServerCall & { readonly isInFlight: boolean }): Promise<void>
  /** The group will not be used again. */
  leave(group: string, call: ServerCall): Promise<void>
}

/** Tensors in the order of their broadcasts. */
export interface AnnouncedTensors {
  readonly group: string
  readonly names: readonly string[]
  readonly shapes: readonly (readonly number[])[]
  readonly dtype: string
  /** The name of the weights, with the last tensors of an update. */
  readonly weights?: string
}

/** One vLLM or SGLang server. Calls throw NoAnswer, Interrupted, RapoError, or the reason of the signal. */
export interface InferenceServer {
  readonly url: string
  /** Changes nothing. Throws RapoError where it serves no model. */
  inspect(call: ServerCall): Promise<ServerFacts>
  /** sampling.n completions, in the order of the samples. */
  sample(
    promptIds: readonly number[],
    sampling: PromptSampling,
    call: ServerCall,
  ): Promise<ServerCompletion[]>
  /**
   * Reads the weights in a directory that the server can see, drops the caches that belong to the weights before, and names the
   * new ones. Requests under way are finished before; with isInFlight they are frozen instead, their caches are computed again,
   * and they go on with the new weights. Servers of adapters: reads an adapter, which is kept beside the others.
   */
  load(dir: string, name: string, call: ServerCall & { readonly isInFlight?: boolean }): Promise<void>
  /** Servers of adapters: forgets the one of this name. */
  unload?(name: string, call: ServerCall): Promise<void>
  /** Servers that take weights by broadcasts. */
  readonly receiver?: Receiver
  /**
   * The name of the weights that it holds, as load gave it; undefined where this release does not tell. Servers of adapters: of
   * the one that was loaded last, while it is there.
   */
  weightsName(call: ServerCall): Promise<string | undefined>
  /** The token ids of a text; undefined where this release does not tell. */
  tokenize(text: string, call: ServerCall): Promise<number[] | undefined>
  close(): void
}

/** Somebody else ended the completions of a request before they were whole. */
export class Interrupted extends Error {}

/** A completion as a server sent it, before checks. */
export interface RawCompletion {
  readonly tokenIds: unknown
  readonly logprobs: unknown
  readonly finishReason: unknown
  /** Of weight spans as vLLM writes them: { version, start, end }. */
  readonly weights?: unknown
}

/**
 * A server's completions of one prompt, checked. Throws RapoError for what is not as asked: another number of completions, a
 * token without a log-prob, one that ends where the run's stop tokens do not end it.
 */
export function checkCompletions(
  place: string,
  raw: readonly RawCompletion[],
  { n, maxNewTokens, stopTokenIds }: PromptSampling,
): ServerCompletion[] {
  const fault = (why: string) => new RapoError('ERR_RAPO_IO', `${place} ${why}`)
  if (raw.length !== n) throw fault(`sent ${raw.length} completions; ${n} were asked for`)
  return raw.map(({ tokenIds, logprobs, finishReason, weights }, i) => {
    if (finishReason === 'abort') throw new Interrupted(`${place}: completion ${i} was aborted there`)
    if (!isList(tokenIds, id => Number.isSafeInteger(id) && id >= 0)) {
      throw fault(`sent completion ${i} without its token ids`)
    }
    if (!isList(logprobs, Number.isFinite) || logprobs.length !== tokenIds.length) {
      throw fault(
        `sent completion ${i} without one finite log-prob for each of its ${tokenIds.length} tokens`,
      )
    }
    const last = tokenIds.at(-1)
    if (last === undefined) throw fault(`sent completion ${i} without a token`)
    if (finishReason === 'stop' && !stopTokenIds.includes(last)) {
      const known = stopTokenIds.join(', ')
      throw fault(
        `ended completion ${i} at token ${last}, which is no stop token of the run (${known}): the server must not be started with stop tokens of its own`,
      )
    }
    if (finishReason !== 'stop' && finishReason !== 'length') {
      throw fault(
        `ended completion ${i} for the reason ${JSON.stringify(finishReason)}, neither stop nor length`,
      )
    }
    if (tokenIds.length > maxNewTokens || (finishReason === 'length' && tokenIds.length < maxNewTokens)) {
      throw fault(
        `sent ${tokenIds.length} tokens in completion ${i}, which ended for the reason ${finishReason}; the limit was ${maxNewTokens}`,
      )
    }
    const first = tokenIds.findIndex(id => stopTokenIds.includes(id))
    if (first >= 0 && first < tokenIds.length - 1) {
      throw fault(`went on after the stop token ${tokenIds[first]} in completion ${i}`)
    }
    const spans = spansOf(weights, tokenIds.length)
    if (spans === null) throw fault(`sent completion ${i} with weight_versions that do not cover its tokens`)
    return {
      ...(spans && { weights: spans }),
      tokenIds: Int32Array.from(tokenIds),
      logprobs: Float32Array.from(logprobs),
      // SGLang says length where the last token that was allowed is a stop token.
      finishReason: stopTokenIds.includes(last) ? 'stop' : 'length',
    }
  })
}

/** Undefined where there are none, null where they are not whole. */
function spansOf(written: unknown, length: number): WeightSpan[] | undefined | null {
  if (written === undefined || written === null) return undefined
  if (!Array.isArray(written)) return null
  const spans = written.map(({ version, start, end }) => ({ name: String(version), start, end }))
  const isWhole = spans.every(({ start, end }, i) => start === (spans[i - 1]?.end ?? 0) && end > start)
  return isWhole && spans.at(-1)?.end === length ? spans : null
}

function isList(value: unknown, isItem: (item: number) => boolean): value is number[] {
  return Array.isArray(value) && value.every(item => typeof item === 'number' && isItem(item))
}
