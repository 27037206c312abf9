/** SGLang's server, `python -m sglang.launch_server`: the requests and answers of release 0.5. */
import { RapoError } from '../../base/errors.js'
import type { Sync } from '../../config/rollouts.js'
import { type Connection, connect, getJson, postJson } from './http.js'
import { readModel, tokenizeOn, withAdapters } from './openai.js'
import {
  checkCompletions,
  type InferenceServer,
  type PromptSampling,
  type RawCompletion,
  type Receiver,
  type ServerCall,
} from './server.js'

/** Of the tensors that SGLang allocates at once to receive them. */
const REQUEST_BYTES = 2 ** 29

export function sglangServer(url: string, sync: Sync = 'disk'): InferenceServer {
  const connection = connect(url)
  const get = (route: string, call: ServerCall) => getJson(connection, route, call)
  const post = (route: string, call: ServerCall, body: object) => postJson(connection, route, body, call)
  const server: InferenceServer = {
    url: connection.url,

    async inspect(call) {
      const model = await readModel(connection, call)
      const info = await get('/get_server_info', call)
      const lack = lackOf(sync, info)
      return {
        ...{ release: `SGLang ${info.version}`, ...model },
        ...(lack !== undefined && { refusesWeights: `${connection.url} ${lack}` }),
      }
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

    ...((sync === 'nccl' || sync === 'gloo') && { receiver: receiverOf(connection) }),

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
  if (sync !== 'adapter') return server
  const tell = async (route: string, body: object, call: ServerCall) => {
    const { success, error_message: message } = await post(route, call, body)
    if (success === false) throw new RapoError('ERR_RAPO_IO', `${connection.url}${route}: ${message}`)
  }
  return withAdapters(server, connection, {
    load: (dir, name, call) => tell('/load_lora_adapter', { lora_name: name, lora_path: dir }, call),
    unload: (name, call) => tell('/unload_lora_adapter', { lora_name: name }, call),
  })
}

/** Why it cannot be given weights in this way, and what must be done; undefined where nothing is missing. */
function lackOf(sync: Sync, info: Readonly<Record<string, unknown>>): string | undefined {
  if (sync === 'adapter' && info.enable_lora === false)
    return 'cannot be given adapters: start sglang.launch_server with --enable-lora, --max-lora-rank and --lora-target-modules'
  if ((sync === 'nccl' || sync === 'gloo') && Number(info.dp_size ?? 1) > 1)
    return `cannot be given weights by broadcasts: start sglang.launch_server with --dp-size 1, not ${info.dp_size}`
  return undefined
}

/** SGLang's weight update group, which is torch.distributed's. */
function receiverOf(connection: Connection): Receiver {
  const post = async (route: string, call: ServerCall, body: object) => {
    const { success, message } = await postJson(connection, route, body, call)
    if (success !== false) return
    throw new RapoError('ERR_RAPO_IO', `${connection.url}${route}: ${message}`)
  }
  return {
    usesStore: true,
    address: connection.localAddress,
    packedBytes: 0,
    requestBytes: REQUEST_BYTES,
    async workers(call) {
      const { tp_size: count = 1 } = await getJson(connection, '/get_server_info', call)
      return Number(count)
    },
    join: ({ name, rankOffset, worldSize, port, backend }, call) =>
      post('/init_weights_update_group', call, {
        ...{ master_address: connection.localAddress(), master_port: port },
        ...{ rank_offset: rankOffset, world_size: worldSize, group_name: name, backend },
      }),
    async begin({ isInFlight, ...call }) {
      if (isInFlight) await post('/pause_generation', call, { mode: 'retract' })
    },
    receive: ({ group, names, shapes, dtype, weights }, call) =>
      post('/update_weights_from_distributed', call, {
        ...{ names, shapes, dtypes: names.map(() => dtype), group_name: group },
        ...{ flush_cache: weights !== undefined, weight_version: weights ?? null },
      }),
    async finish(_name, { isInFlight, ...call }) {
      if (isInFlight) await post('/continue_generation', call, {})
    },
    leave: (group, call) => post('/destroy_weights_update_group', call, { group_name: group }),
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
    ...(sampling.adapter !== undefined && { lora_path: sampling.adapter }),
  }
}
