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
  return {
    url: connection.url,
    inspect,

    async sample(promptIds, sampling, call) {
      const { model } = await known(call)
      const answer = await post('/v1/completions', call, completionRequest(model, promptIds, sampling))
      const place = `${connection.url}/v1/completions`
      if (!Array.isArray(answer.choices))
        throw new RapoError('ERR_RAPO_IO', `${place} answered without choices`)
      const choices = (answer.choices as Choice[]).toSorted((a, b) => a.index - b.index)
      const misplaced = choices.findIndex(({ index }, i) => index !== i)
      if (misplaced >= 0) {
        throw new RapoError('ERR_RAPO_IO', `${place} sent no choice of index ${misplaced}, or two of them`)
      }
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

    async load(dir, name, call) {
      await post('/pause?mode=wait', call)
      const kwargs = { weights_path: dir }
      await post('/collective_rpc', call, { method: 'reload_weights', kwargs })
      const { success } = await post('/reset_prefix_cache', call)
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

/**
 * Every field that changes the distribution is sent: the server fills the others from the model's generation_config.json. With
 * ignore_eos only stop_token_ids end a completion.
 */
function completionRequest(model: string, prompt: readonly number[], sampling: PromptSampling): object {
  const { n, maxNewTokens, temperature = 1, topP = 1, topK = 0, minP = 0, stopTokenIds, seed } = sampling
  return {
    ...{ model, prompt, n, max_tokens: maxNewTokens, min_tokens: 0 },
    ...{ temperature, top_p: topP, top_k: topK, min_p: minP },
    ...{ repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0 },
    ...{ stop_token_ids: stopTokenIds, ignore_eos: true },
    ...{ logprobs: 0, return_token_ids: true },
    ...(seed !== undefined && { seed }),
  }
}
