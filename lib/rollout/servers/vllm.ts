/** vLLM's server, `vllm serve` in development mode: the requests and answers of release 0.32. */
import { RapoError } from '../../base/errors.js'
import type { Sync } from '../../config/rollouts.js'
import { type Connection, connect, getJson, jsonOf, postJson } from './http.js'
import { readModel, tokenizeOn, withAdapters } from './openai.js'
import {
  checkCompletions,
  type InferenceServer,
  type PromptSampling,
  type RawCompletion,
  type Receiver,
  type ServerCall,
  type ServerFacts,
} from './server.js'

/** Of a packed broadcast. Both sides have two buffers of this size, or of the largest tensor's. */
const PACKED_BYTES = 2 ** 28

export function vllmServer(url: string, sync: Sync = 'disk'): InferenceServer {
  const connection = connect(url)
  const get = (route: string, call: ServerCall) => getJson(connection, route, call)
  const post = (route: string, call: ServerCall, body: object = {}) => postJson(connection, route, body, call)
  const look = async (call: ServerCall): Promise<ServerFacts> => {
    const model = await readModel(connection, call)
    const paused = await connection.request('/is_paused', call)
    const { version } = await get('/version', call)
    const facts = { release: `vLLM ${version}`, ...model }
    const refusal = await refusalOf(connection, sync, String(version), paused.status !== 404, call)
    return {
      ...facts,
      ...(refusal !== undefined && { refusesWeights: `${connection.url} cannot be given ${refusal}` }),
      ...(paused.status !== 404 && {
        isPaused: jsonOf(`${connection.url}/is_paused`, paused).is_paused === true,
      }),
    }
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
  const pause = (isInFlight: boolean, call: ServerCall) =>
    post(`/pause?mode=${isInFlight ? 'keep' : 'wait'}`, call)
  const dropCache = async (isInFlight: boolean, call: ServerCall) => {
    const { success } = await post(
      `/reset_prefix_cache${isInFlight ? '?reset_running_requests=true' : ''}`,
      call,
    )
    if (success === false) {
      throw new RapoError('ERR_RAPO_IO', `${connection.url} did not drop the cache of the weights before`)
    }
  }
  const server: InferenceServer = {
    url: connection.url,
    inspect,

    async sample(promptIds, sampling, call) {
      const { model: served } = await known(call)
      const model = sampling.adapter ?? served
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
      await pause(isInFlight, call)
      const kwargs = { weights_path: dir }
      await post('/collective_rpc', call, { method: 'reload_weights', kwargs })
      await dropCache(isInFlight, call)
      const named = await connection.request('/update_weight_version', {
        body: { new_version: name },
        ...call,
      })
      // Older releases have no names for weights.
      if (named.status !== 404) jsonOf(`${connection.url}/update_weight_version`, named)
      await post('/resume', call)
    },

    ...(sync === 'nccl' && { receiver: receiverOf(connection, pause, dropCache) }),

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
  if (sync !== 'adapter') return server
  /** These routes answer with a text. */
  const tell = async (route: string, body: object, call: ServerCall) => {
    const answer = await connection.request(route, { body, ...call })
    if (answer.status !== 200) jsonOf(connection.url + route, answer)
  }
  return withAdapters(server, connection, {
    load: (dir, name, call) => tell('/v1/load_lora_adapter', { lora_name: name, lora_path: dir }, call),
    unload: (name, call) => tell('/v1/unload_lora_adapter', { lora_name: name }, call),
  })
}

/** What it cannot be given in this way, and what must be done, as a phrase; undefined where nothing is missing. */
async function refusalOf(
  connection: Connection,
  sync: Sync,
  version: string,
  isInDevMode: boolean,
  call: ServerCall,
): Promise<string | undefined> {
  if (sync === 'adapter') {
    // A route that is there, but for POST, answers 405.
    const { status } = await connection.request('/v1/load_lora_adapter', { method: 'GET', ...call })
    const how = '--enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment'
    return status === 404 ? `adapters: start vllm serve with ${how}` : undefined
  }
  if (!isInDevMode) return 'weights: start vllm serve with VLLM_SERVER_DEV_MODE=1 in its environment'
  if (sync !== 'nccl') return undefined
  const [major = 0, minor = 0] = version.split('.').map(Number)
  if (major === 0 && minor < 30) return `weights by NCCL: it must be vLLM 0.30 or newer, not ${version}`
  const answer = await connection.request('/server_info?config_format=json', call)
  if (answer.status !== 200) return undefined
  const { vllm_config: config } = jsonOf(`${connection.url}/server_info`, answer)
  const told = (config ?? {}) as { readonly weight_transfer_config?: { readonly backend?: unknown } | null }
  if (!('weight_transfer_config' in told) || told.weight_transfer_config?.backend === 'nccl') return undefined
  return `weights by NCCL: start vllm serve with --weight-transfer-config '{"backend": "nccl"}'`
}

/** vLLM's weight transfer with the backend nccl, from release 0.30 on. */
function receiverOf(
  connection: Connection,
  pause: (isInFlight: boolean, call: ServerCall) => Promise<unknown>,
  dropCache: (isInFlight: boolean, call: ServerCall) => Promise<void>,
): Receiver {
  const post = (route: string, call: ServerCall, body: object = {}) => postJson(connection, route, body, call)
  return {
    usesStore: false,
    address: connection.localAddress,
    packedBytes: PACKED_BYTES,
    requestBytes: Infinity,
    async workers(call) {
      const { world_size: count } = await getJson(connection, '/get_world_size', call)
      return Number(count)
    },
    async join({ rankOffset, worldSize, id, packedBytes }, call) {
      const info = {
        ...{ nccl_unique_id_b64: Buffer.from(id).toString('base64') },
        ...{ rank_offset: rankOffset, world_size: worldSize },
        ...{ packed: true, packed_buffer_size_bytes: packedBytes, packed_num_buffers: 2 },
      }
      await post('/init_weight_transfer_engine', call, { init_info: info })
    },
    async begin({ isInFlight, ...call }) {
      await pause(isInFlight, call)
      await post('/start_weight_update', call)
    },
    async receive({ names, shapes, dtype }, call) {
      const info = { names, dtype_names: names.map(() => dtype), shapes }
      await post('/update_weights', call, { update_info: info })
    },
    async finish(name, { isInFlight, ...call }) {
      await post('/finish_weight_update', call, { weight_version: name })
      await dropCache(isInFlight, call)
      await post('/resume', call)
    },
    // The next group takes its place.
    async leave() {},
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
