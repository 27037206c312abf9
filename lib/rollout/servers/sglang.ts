/** SGLang's server, `python -m sglang.launch_server`: the requests and answers of release 0.5. */
import { RapoError } from '../../base/errors.js'
import { connect, getJson, postJson } from './http.js'
import { readModel, tokenizeOn } from './openai.js'
import {
  checkCompletions,
  type InferenceServer,
  type PromptSampling,
  type RawCompletion,
  type ServerCall,
} from './server.js'

export function sglangServer(url: string): InferenceServer {
  const connection = connect(url)
  const get = (route: string, call: ServerCall) => getJson(connection, route, call)
  const post = (route: string, call: ServerCall, body: object) => postJson(connection, route, body, call)
  return {
    url: connection.url,

    async inspect(call) {
      const model = await readModel(connection, call)
      const { version } = await get('/get_server_info', call)
      return { release: `SGLang ${version}`, ...model }
    },

    async sample(promptIds, sampling, call) {
      const body = generateRequest(promptIds, sampling)
      const answer = await post('/generate', call, body)
      const place = `${connection.url}/generate`
      const outputs = (Array.isArray(answer) ? answer : [answer]) as Output[]
      const raw = outputs.map(({ meta_info: meta }): RawCompletion => {
        const tokens = Array.isArray(meta?.output_token_logprobs) ? meta.output_token_logprobs : []
        return {
          tokenIds: tokens.map(([, id]) => id),
          logprobs: tokens.map(([logprob]) => logprob),
          finishReason: meta?.finish_reason?.type,
        }
      })
      return checkCompletions(place, raw, sampling)
    },

    async load(dir, name, { isInFlight = false, ...call }) {
      const body = { model_path: dir, flush_cache: true, weight_version: name }
      // Requests that were retracted have no caches, and compute them again.
      if (isInFlight) await post('/pause_generation', call, { mode: 'retract' })
      try {
        const { success, message } = await post('/update_weights_from_disk', call, body)
        if (success === true) return
        throw new RapoError('ERR_RAPO_IO', `${connection.url} did not load ${dir}: ${message}`)
      } finally {
        if (isInFlight) await post('/continue_generation', call, {})
      }
    },

    weightsName: async call => {
      const { weight_version: name } = await get('/get_model_info', call)
      return typeof name === 'string' ? name : undefined
    },

    async tokenize(text, call) {
      const { model } = await readModel(connection, call)
      return tokenizeOn(connection, { model, prompt: text, add_special_tokens: false }, call)
    },

    close: () => connection.close(),
  }
}

interface Output {
  readonly meta_info?: {
    readonly finish_reason?: { readonly type?: unknown }
    /** Of each token: log-prob, id, text. */
    readonly output_token_logprobs?: readonly (readonly unknown[])[]
  }
}

/**
 * Every field that changes the distribution is sent. no_stop_trim: the stop token is part of the completion. ignore_eos would make
 * SGLang ignore stop_token_ids too. Log-probs are those before top-k, top-p and min-p.
 */
function generateRequest(promptIds: readonly number[], sampling: PromptSampling): object {
  const { n, maxNewTokens, temperature = 1, topP = 1, topK = 0, minP = 0, stopTokenIds, seed } = sampling
  return {
    input_ids: promptIds,
    sampling_params: {
      ...{ n, max_new_tokens: maxNewTokens, min_new_tokens: 0 },
      ...{ temperature, top_p: topP, top_k: topK === 0 ? -1 : topK, min_p: minP },
      ...{ repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0 },
      ...{ stop_token_ids: stopTokenIds, ignore_eos: false, no_stop_trim: true, skip_special_tokens: false },
      ...(seed !== undefined && { sampling_seed: seed }),
    },
    return_logprob: true,
    logprob_start_len: -1,
  }
}
