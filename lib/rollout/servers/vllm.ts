/** vLLM's server, `vllm serve` in development mode: the requests and answers of release 0.32. */
import { RapoError } from '../../base/errors.js'
import { connect, getJson, jsonOf, postJson } from './http.js'
import { readModel, tokenizeOn } from './openai.js'
import {
  checkCompletions,
  type InferenceServer,
  type PromptSampling,
  type RawCompletion,
  type ServerCall,
  type ServerFacts,
} from './server.js'

export function vllmServer(url: string): InferenceServer {
  const connection = connect(url)
  const get = (route: string, call: ServerCall) => getJson(connection, route, call)
  const post = (route: string, call: ServerCall, body: object = {}) => postJson(connection, route, body, call)
  const look = async (call: ServerCall): Promise<ServerFacts> => {
    const model = await readModel(connection, call)
    const paused = await connection.request('/is_paused', call)
    const { version } = await get('/version', call)
    const facts = { release: `vLLM ${version}`, ...model }
    if (paused.status === 404) {
      const refusesWeights = `${connection.url} cannot be given weights: start vllm serve with VLLM_SERVER_DEV_MODE=1 in its environment`
      return { ...facts, refusesWeights }
    }
    return { ...facts, isPaused: jsonOf(`${connection.url}/is_paused`, paused).is_paused === true }
  }
  let facts: Promise<ServerFacts> | undefined
  const inspect = (call: ServerCall): Promise<ServerFacts> => {
    const asked = look(call)
    facts = asked
    asked.catch(() => {
      if (facts === asked) facts = undefined
    })
    return asked
  }
  const known = (call: ServerCall) => facts ?? inspect(call)
  /** Releases before 0.30, and servers without --enable-scale-out. */
  let hasNoSpans = false
  /** Undefined where the server does not have this route. */
  const sampleWithWeights = async (
    model: string,
    promptIds: readonly number[],
    sampling: PromptSampling,
    call: ServerCall,
  ) => {
    const place = `${connection.url}/inference/v1/generate`
    const body = generateRequest(model, promptIds, sampling)
    const answered = await connection.request('/inference/v1/generate', { body, ...call })
    if (answered.status === 403 || answered.status === 404) {
      hasNoSpans = true
      return undefined
    }
    const choices = choicesOf<TokensChoice>(place, jsonOf(place, answered))
    const raw = choices.map(
      (choice): RawCompletion => ({
        tokenIds: choice.token_ids,
        logprobs: choice.logprobs?.content?.map(({ logprob }) => logprob),
        finishReason: choice.finish_reason,
        weights: choice.weight_versions,
      }),
    )
    return checkCompletions(place, raw, sampling)
  }
  return {
    url: connection.url,
    inspect,

    async sample(promptIds, sampling, call) {
      const { model } = await known(call)
      const spans =
        sampling.withWeights && !hasNoSpans && (await sampleWithWeights(model, promptIds, sampling, call))
      if (spans) return spans
      const answer = await post('/v1/completions', call, completionRequest(model, promptIds, sampling))
      const place = `${connection.url}/v1/completions`
      const choices = choicesOf<Choice>(place, answer)
      for (const { prompt_token_ids: ids } of choices) {
        if (!ids || (ids.length === promptIds.length && ids.every((id, t) => id === promptIds[t]))) continue
        throw new RapoError('ERR_RAPO_IO', `${place} completed another prompt than it was sent`)
      }
      const raw = choices.map(
        (choice): RawCompletion => ({
          tokenIds: choice.token_ids,
          logprobs: choice.logprobs?.token_logprobs,
          finishReason: choice.finish_reason,
        }),
      )
      return checkCompletions(place, raw, sampling)
    },

    async load(dir, name, { isInFlight = false, ...call }) {
      await post(`/pause?mode=${isInFlight ? 'keep' : 'wait'}`, call)
      const kwargs = { weights_path: dir }
      await post('/collective_rpc', call, { method: 'reload_weights', kwargs })
      const { success } = await post(
        `/reset_prefix_cache${isInFlight ? '?reset_running_requests=true' : ''}`,
        call,
      )
      if (success === false) {
        throw new RapoError('ERR_RAPO_IO', `${connection.url} did not drop the cache of the weights before`)
      }
      const named = await connection.request('/update_weight_version', {
        body: { new_version: name },
        ...call,
      })
      // Older releases have no names for weights.
      if (named.status !== 404) jsonOf(`${connection.url}/update_weight_version`, named)
      await post('/resume', call)
    },

    async weightsName(call) {
      const answer = await connection.request('/weight_info', call)
      if (answer.status === 404) return undefined
      return String(jsonOf(`${connection.url}/weight_info`, answer).weight_version)
    },

    async tokenize(text, call) {
      const { model } = await known(call)
      return tokenizeOn(connection, { model, prompt: text, add_special_tokens: false }, call)
    },

    close: () => connection.close(),
  }
}

interface Choice {
  readonly index: number
  readonly token_ids?: unknown
  readonly prompt_token_ids?: readonly number[] | null
  readonly logprobs?: { readonly token_logprobs?: unknown }
  readonly finish_reason?: unknown
}

interface TokensChoice {
  readonly index: number
  readonly token_ids?: unknown
  readonly logprobs?: { readonly content?: readonly { readonly logprob?: unknown }[] | null } | null
  readonly finish_reason?: unknown
  readonly weight_versions?: unknown
}

/** In the order of their indexes. */
function choicesOf<T extends { readonly index: number }>(
  place: string,
  { choices }: Readonly<Record<string, unknown>>,
): T[] {
  if (!Array.isArray(choices)) throw new RapoError('ERR_RAPO_IO', `${place} answered without choices`)
  const sorted = (choices as T[]).toSorted((a, b) => a.index - b.index)
  const misplaced = sorted.findIndex(({ index }, i) => index !== i)
  if (misplaced < 0) return sorted
  throw new RapoError('ERR_RAPO_IO', `${place} sent no choice of index ${misplaced}, or two of them`)
}

/**
 * Every field that changes the distribution is sent: the server fills the others from the model's generation_config.json. With
 * ignore_eos only stop_token_ids end a completion.
 */
function completionRequest(model: string, prompt: readonly number[], sampling: PromptSampling): object {
  return { model, prompt, ...samplingFields(sampling), return_token_ids: true }
}

/** Of /inference/v1/generate: the same fields, in an object of their own. */
function generateRequest(model: string, tokenIds: readonly number[], sampling: PromptSampling): object {
  return { model, token_ids: tokenIds, sampling_params: samplingFields(sampling) }
}

function samplingFields(sampling: PromptSampling): object {
  const { n, maxNewTokens, temperature = 1, topP = 1, topK = 0, minP = 0, stopTokenIds, seed } = sampling
  return {
    ...{ n, max_tokens: maxNewTokens, min_tokens: 0 },
    ...{ temperature, top_p: topP, top_k: topK, min_p: minP },
    ...{ repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0 },
    ...{ stop_token_ids: stopTokenIds, ignore_eos: true, logprobs: 0 },
    ...(seed !== undefined && { seed }),
  }
}
