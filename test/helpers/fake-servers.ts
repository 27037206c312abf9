/**
 * vLLM 0.32 and SGLang 0.5 as far as rapo talks to them: the routes, fields and errors of recorded answers, with the fake policy of
 * fake-policy.ts as the model, or with another one. Its weights are those that it was last given.
 */
import { existsSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import path from 'node:path'
import { packTokens, unpackCompletions } from '../../lib/model/batch.js'
import type { LoadPolicy, Policy } from '../../lib/model/policy.js'
import { loadTokenizer } from '../../lib/model/tokenizer.js'
import { loadFakePolicy } from './fake-policy.js'
import { type Announced, createReceiver, type Joining, type ReceiverKind } from './fake-receiver.js'

/** The fields of all requests together; each has some of them. */
export interface RequestBody {
  readonly model: string
  /** A text in /tokenize. */
  readonly prompt: number[]
  readonly n: number
  readonly max_tokens: number
  readonly temperature: number
  readonly stop_token_ids: number[]
  readonly seed?: number
  readonly method: string
  readonly kwargs: { readonly weights_path: string }
  readonly new_version: string
  readonly input_ids: number[]
  readonly sampling_params: {
    readonly n: number
    readonly max_new_tokens: number
    readonly max_tokens: number
    readonly seed?: number
    readonly temperature: number
    readonly stop_token_ids: number[]
    readonly sampling_seed?: number
  }
  readonly token_ids: number[]
  readonly mode: string
  readonly model_path: string
  readonly weight_version: string
  readonly lora_name: string
  readonly lora_path?: string
  readonly init_info: Joining
  readonly update_info: Announced
}

/** What is wrong with a server. Everything can be changed while the server runs. */
export interface Faults {
  /** Reloads are answered as if they had worked. */
  reloadsNothing?: boolean
  /** Its log-probs are those at temperature 1, as with vLLM's raw_logprobs. */
  isRaw?: boolean
  /** It samples from these weights, whatever it is given. */
  otherModel?: string
  /** Its tokenizer gives other ids. */
  otherTokenizer?: boolean
  /** Choices come in the reverse order, with their right index. */
  reverses?: boolean
  /** Completions that end with a stop token come without the token. */
  dropsStop?: boolean
  /** A token that ends completions at this server, though nobody asked for it. */
  ownStop?: number
  /** The weights have no names: an older release. */
  hasNoNames?: boolean
  /** vLLM without its development mode. */
  hasNoDevMode?: boolean
  /** The cache of the weights before stays. */
  keepsCache?: boolean
  /** vLLM: somebody paused it before it was first asked. */
  isPaused?: boolean
  /** vLLM with --enable-scale-out: /inference/v1/generate tells the weights of each token. */
  hasScaleOut?: boolean
  /** Awaited after the first token of every completion that is asked for there; the rest comes from the weights of then. */
  midway?: () => Promise<void>
  /** vLLM without VLLM_ALLOW_RUNTIME_LORA_UPDATING, SGLang without --enable-lora. */
  hasNoAdapters?: boolean
  /** Its workers, each a rank of a group. Default 1. */
  workers?: number
  /** vLLM: the backend of --weight-transfer-config; null without one. Default nccl. */
  transferBackend?: string | null
  /** Awaited by each worker after it has received the n-th broadcast of an update, from 1 on, before it tells rank 0. */
  onBroadcast?: (n: number) => Promise<void>
  /** The context. Default 64. */
  maxModelLen?: number
  /** Called for each request: 'hang' never answers, 'half' breaks off in the answer, 'reset' before the answer. */
  onRequest?: (route: string, body: RequestBody) => undefined | Fault | Promise<undefined | Fault>
}

export type Fault = 'hang' | 'half' | 'reset' | { readonly status: number; readonly body: object }

export interface FakeServer {
  readonly url: string
  readonly faults: Faults
  /** Route and body of every request, in their order. */
  readonly requests: { readonly route: string; readonly body: RequestBody }[]
  /** Of its weights. */
  weightsName(): string
  /** The directory of its weights, as it read them or as its workers wrote what they received. */
  weightsDir(): string
  /** The names of its adapters. */
  adapters(): string[]
  /** As if it had been started again between two requests. */
  forgetAdapters(): void
  /** Somebody else's doing. */
  rename(name: string): void
  /** Requests for completions that are not answered yet. */
  running(): number
  /** Ends the server as kill -9 does: connections break. */
  kill(): Promise<void>
  /** Starts it again at the same address, with the weights that it began with. */
  restart(): Promise<void>
  close(): Promise<void>
}

interface Sampled {
  readonly ids: number[]
  readonly logprobs: number[]
  readonly finishReason: string
  /** Of /inference/v1/generate. */
  readonly spans?: object[]
}

/**
 * @param model the directory that the server is started with
 * @param loadPolicy loads that, and what it is given
 */
export async function startFakeServer(
  kind: ReceiverKind,
  model: string,
  faults: Faults = {},
  loadPolicy: LoadPolicy = loadFakePolicy,
): Promise<FakeServer> {
  const tokenizer = loadTokenizer(model)
  const requests: FakeServer['requests'] = []
  let policy: Policy = await loadPolicy(model)
  const adapters = new Map<string, Policy>()
  const receiver = createReceiver(kind, model, faults)
  let name = 'default'
  let weightsDir = model
  let isPaused = faults.isPaused ?? false
  let running = 0
  let draws = 0
  let server: Server

  const sample = async (
    prompt: number[],
    n: number,
    maxNewTokens: number,
    temperature: number,
    stopTokenIds: number[],
    seed?: number,
    adapter?: string,
  ) => {
    const named = adapter === undefined ? policy : adapters.get(adapter)!
    const source = faults.otherModel === undefined ? named : await loadPolicy(faults.otherModel)
    const own = faults.ownStop === undefined ? [] : [faults.ownStop]
    const sampled = await source.generate(packTokens([prompt]), {
      ...{ n, maxNewTokens, temperature, stopTokenIds: [...stopTokenIds, ...own] },
      seed: seed ?? draws++,
    })
    const completions = unpackCompletions(sampled)
    return Promise.all(
      completions.map(async ({ tokenIds, logprobs, finishReason }): Promise<Sampled> => {
        const ids = [...tokenIds]
        const shown = faults.isRaw ? await rawLogprobs(source, prompt, ids) : [...logprobs]
        const isCut = faults.dropsStop && finishReason === 'stop'
        return {
          ids: isCut ? ids.slice(0, -1) : ids,
          logprobs: isCut ? shown.slice(0, -1) : shown,
          finishReason,
        }
      }),
    )
  }

  /** Completions whose first token comes from the weights of now, and the others from those after faults.midway. */
  const sampleMidway: typeof sample = async (prompt, n, maxNewTokens, temperature, stopTokenIds, seed) => {
    const ask = (again?: number) => sample(prompt, n, maxNewTokens, temperature, stopTokenIds, again)
    const before = name
    const first = await ask(seed)
    await faults.midway?.()
    const isLonger = ({ ids }: (typeof first)[number]) => ids.length > 1
    const rest: typeof first = before === name ? [] : await ask(seed)
    // The tokens of the fake policy do not depend on each other.
    while (rest.length > 0 && rest.filter(isLonger).length < first.length) rest.push(...(await ask()))
    const tails = rest.filter(isLonger)
    return first.map((head, i) => {
      const spans = (length: number, start: number) => [
        { version: before, start: 0, end: start },
        ...(start < length ? [{ version: name, start, end: length }] : []),
      ]
      const tail = tails[i]
      if (!tail || !isLonger(head)) return { ...head, spans: spans(head.ids.length, head.ids.length) }
      const join = <T>(a: T[], b: T[]) => [...a.slice(0, 1), ...b.slice(1)]
      const ids = join(head.ids, tail.ids)
      const logprobs = join(head.logprobs, tail.logprobs)
      return { ids, logprobs, finishReason: tail.finishReason, spans: spans(ids.length, 1) }
    })
  }

  const load = async (dir: string) => {
    weightsDir = dir
    if (!faults.reloadsNothing) policy = await loadPolicy(dir)
  }

  /** Of the fake policy an adapter is a whole model. */
  const loadAdapter = async ({ lora_name: given, lora_path: dir }: RequestBody) => {
    if (adapters.has(given)) return `The lora adapter '${given}' has already been loaded.`
    if (!existsSync(path.join(dir!, 'adapter_config.json'))) return `No adapter found for ${dir}`
    adapters.set(given, await loadPolicy(dir!))
    return undefined
  }

  const tokenize = (body: RequestBody) => {
    const tokens = tokenizer.encode(String(body.prompt))
    if (faults.otherTokenizer) tokens.push(0)
    return { count: tokens.length, max_model_len: faults.maxModelLen ?? 64, tokens }
  }

  const models = () => ({
    object: 'list',
    data: [
      { id: 'policy', root: model, max_model_len: faults.maxModelLen ?? 64 },
      ...[...adapters.keys()].map(id => ({ id, parent: 'policy', max_model_len: null })),
    ],
  })

  type Handler = (body: RequestBody) => unknown
  const refuse = (status: number, message: string) => ({
    status,
    body: { error: { message, type: 'BadRequestError', param: null, code: status } },
  })
  const vllm: Record<string, Handler> = {
    'GET /v1/models': models,
    'GET /version': () => ({ version: '0.32.0' }),
    'GET /is_paused': () => ({ is_paused: isPaused }),
    'GET /weight_info': () => ({ weight_version: name }),
    'POST /tokenize': tokenize,
    'POST /pause': () => {
      isPaused = true
      return { status: 'paused' }
    },
    'POST /resume': () => {
      isPaused = false
      return { status: 'resumed' }
    },
    'POST /reset_prefix_cache': () => ({ success: !faults.keepsCache }),
    'POST /update_weight_version': body => {
      name = body.new_version
      return { success: true, new_version: name }
    },
    'POST /collective_rpc': async body => {
      try {
        await load(body.kwargs.weights_path)
        return { results: [null] }
      } catch (error) {
        return refuse(500, `Call to collective_rpc method failed: ${(error as Error).message}`)
      }
    },
    'GET /v1/load_lora_adapter': () => refuse(405, 'Method Not Allowed'),
    'POST /v1/load_lora_adapter': async body => {
      const fault = await loadAdapter(body)
      if (fault !== undefined) return refuse(fault.startsWith('No adapter') ? 404 : 400, fault)
      return `Success: LoRA adapter '${body.lora_name}' added successfully.`
    },
    'POST /v1/unload_lora_adapter': ({ lora_name: given }) => {
      if (!adapters.delete(given)) return refuse(404, `The lora adapter '${given}' cannot be found.`)
      return `Success: LoRA adapter '${given}' removed successfully.`
    },
    'GET /server_info': () => {
      const { transferBackend: backend = 'nccl' } = faults
      return { vllm_config: { weight_transfer_config: backend === null ? null : { backend } } }
    },
    'GET /get_world_size': () => ({ world_size: faults.workers ?? 1 }),
    'POST /init_weight_transfer_engine': async ({ init_info: place }) => {
      await receiver.join(place)
      return { message: 'Weight transfer initialized' }
    },
    'POST /start_weight_update': () => ({ message: 'Weight update started' }),
    'POST /update_weights': async ({ update_info: announced }) => {
      try {
        await load(await receiver.receive(announced))
        return { message: 'Weights updated' }
      } catch (error) {
        return refuse(500, (error as Error).message)
      }
    },
    'POST /finish_weight_update': ({ weight_version: given }) => {
      name = given
      return { message: 'Weight update finished' }
    },
    'POST /inference/v1/generate': async ({ token_ids: prompt, sampling_params: asked }) => {
      if (!faults.hasScaleOut) return refuse(403, 'Scale-out endpoints need --enable-scale-out')
      const { n, max_tokens: most, temperature, stop_token_ids: stops, seed } = asked
      const sampled = await sampleMidway(prompt, n, most, temperature, stops, seed)
      const choices = sampled.map(({ ids, logprobs, finishReason, spans }, index) => ({
        index,
        finish_reason: finishReason,
        stop_reason: null,
        token_ids: ids,
        logprobs: {
          content: ids.map((id, t) => ({ token_id: id, logprob: logprobs[t], rank: 1, top_logprobs: [] })),
        },
        weight_versions: spans,
      }))
      if (faults.reverses) choices.reverse()
      return { request_id: 'generate-tokens-1', output_mode: 'tokens', model: 'policy', choices, usage: {} }
    },
    'POST /v1/completions': async body => {
      const { prompt, n, max_tokens: maxTokens } = body
      const adapter = body.model === 'policy' ? undefined : body.model
      if (adapter !== undefined && !adapters.has(adapter))
        return refuse(404, `The model \`${body.model}\` does not exist.`)
      if (n < 1) return refuse(400, `n must be at least 1, got ${n}.`)
      if (prompt.some((id: number) => id >= policy.info.vocabSize))
        return refuse(400, `Token id ${Math.max(...prompt)} is out of vocabulary`)
      if (prompt.length + maxTokens > (faults.maxModelLen ?? 64))
        return refuse(400, 'This model has a maximum context length')
      const { temperature, stop_token_ids: stops, seed } = body
      const sampled = await sample(prompt, n, maxTokens, temperature, stops, seed, adapter)
      const choices = sampled.map(({ ids, logprobs, finishReason }, index) => ({
        index,
        text: tokenizer.decode(ids),
        logprobs: {
          text_offset: ids.map((_, t) => t),
          token_logprobs: logprobs,
          tokens: [],
          top_logprobs: [],
        },
        finish_reason: finishReason,
        stop_reason: null,
        token_ids: ids,
        prompt_token_ids: prompt,
      }))
      if (faults.reverses) choices.reverse()
      return { id: 'cmpl-1', object: 'text_completion', model: 'policy', choices, usage: {} }
    },
  }
  const sglang: Record<string, Handler> = {
    'GET /v1/models': models,
    'GET /get_server_info': () => ({
      ...{ version: '0.5.23', model_path: model, internal_states: [] },
      ...{ tp_size: faults.workers ?? 1, dp_size: 1, enable_lora: !faults.hasNoAdapters },
    }),
    'POST /load_lora_adapter': async body => {
      const fault = await loadAdapter(body)
      const loaded = Object.fromEntries([...adapters.keys()].map(given => [given, '']))
      if (fault === undefined) return { success: true, error_message: '', loaded_adapters: loaded }
      return { status: 400, body: { success: false, error_message: fault, loaded_adapters: loaded } }
    },
    'POST /unload_lora_adapter': ({ lora_name: given }) => {
      if (adapters.delete(given)) return { success: true, error_message: '', loaded_adapters: {} }
      return { status: 400, body: { success: false, error_message: `${given} is not loaded` } }
    },
    'POST /init_weights_update_group': async body => {
      await receiver.join(body as unknown as Joining)
      return { success: true, message: 'Succeeded to initialize custom process group.' }
    },
    'POST /destroy_weights_update_group': () => {
      receiver.leave()
      return { success: true, message: 'Succeeded to destroy custom process group.' }
    },
    'POST /update_weights_from_distributed': async body => {
      try {
        const dir = await receiver.receive(body as unknown as Announced)
        if (body.weight_version) {
          await load(dir)
          name = body.weight_version
        }
        return { success: true, message: 'Succeeded to update parameter online.' }
      } catch (error) {
        return { status: 400, body: { success: false, message: (error as Error).message } }
      }
    },
    'GET /get_model_info': () => ({ model_path: model, is_generation: true, weight_version: name }),
    'POST /tokenize': tokenize,
    'POST /pause_generation': () => ({ status: 'ok' }),
    'POST /continue_generation': () => ({ status: 'ok' }),
    'POST /update_weights_from_disk': async body => {
      try {
        await load(body.model_path)
        name = body.weight_version
        return { success: true, message: 'Succeeded to update model weights.', num_paused_requests: 0 }
      } catch (error) {
        const message = `Failed to update weights: ${(error as Error).message}. Rolling back to original weights.`
        return { status: 400, body: { success: false, message, num_paused_requests: 0 } }
      }
    },
    'POST /generate': async body => {
      const {
        n,
        max_new_tokens: maxTokens,
        temperature,
        stop_token_ids: stops,
        sampling_seed: seed,
      } = body.sampling_params
      const { lora_path: adapter } = body
      if (adapter !== undefined && !adapters.has(adapter))
        return refuse(400, `The following requested LoRA adapters are not loaded: {'${adapter}'}`)
      const sampled = await sample(body.input_ids, n, maxTokens, temperature, stops, seed, adapter)
      const outputs = sampled.map(({ ids, logprobs, finishReason }) => ({
        text: tokenizer.decode(ids),
        output_ids: ids,
        meta_info: {
          // A stop token in the last place allowed counts as length there.
          finish_reason:
            ids.length === maxTokens
              ? { type: 'length', length: maxTokens }
              : { type: finishReason, matched: ids.at(-1) },
          output_token_logprobs: ids.map((id, t) => [logprobs[t], id, null]),
          weight_version: name,
        },
      }))
      if (faults.reverses) outputs.reverse()
      return n === 1 ? outputs[0] : outputs
    },
  }
  const handlers = kind === 'vllm' ? vllm : sglang
  const devOnly = [
    '/is_paused',
    '/pause',
    '/resume',
    '/weight_info',
    '/collective_rpc',
    '/reset_prefix_cache',
    '/update_weight_version',
  ]
  const unnamed = ['/weight_info', '/update_weight_version', '/get_model_info']
  const adapterRoutes = ['/v1/load_lora_adapter', '/v1/unload_lora_adapter']

  const answer = async (request: IncomingMessage, response: ServerResponse) => {
    const parts: Buffer[] = []
    for await (const part of request) parts.push(part as Buffer)
    const text = Buffer.concat(parts).toString('utf8')
    const body = text === '' ? {} : JSON.parse(text)
    const { pathname } = new URL(request.url!, 'http://x')
    requests.push({ route: request.url!, body })
    const isWork = /^\/(v1\/completions|generate|inference\/v1\/generate)$/.test(pathname)
    if (isWork) {
      running++
      response.on('close', () => running--)
    }
    const fault = await faults.onRequest?.(pathname, body)
    if (fault === 'hang') return
    if (fault === 'reset') return void request.socket.destroy()
    const handler = handlers[`${request.method} ${pathname}`]
    const isMissing =
      !handler ||
      (faults.hasNoDevMode && devOnly.includes(pathname)) ||
      (faults.hasNoAdapters && adapterRoutes.includes(pathname)) ||
      (faults.hasNoNames && unnamed.includes(pathname) && kind === 'vllm')
    const refused = typeof fault === 'object' ? fault : undefined
    const make = () => (isMissing ? { status: 404, body: { detail: 'Not Found' } } : handler(body))
    const result = (refused ?? (await make())) as { status?: unknown; body?: object } | string
    const isRefusal = typeof result === 'object' && typeof result.status === 'number'
    const shown = isRefusal ? (result as { body?: object }).body : result
    const payload = typeof shown === 'string' ? shown : JSON.stringify(shown)
    response.writeHead(isRefusal ? (result as { status: number }).status : 200, {
      'content-type': 'application/json',
      'content-length': Buffer.byteLength(payload),
    })
    if (fault !== 'half') return void response.end(payload)
    response.write(payload.slice(0, payload.length / 2), () => request.socket.destroy())
  }

  const listen = (port: number) =>
    new Promise<number>(resolve => {
      server = createServer((request, response) => {
        answer(request, response).catch(error => {
          if (!response.headersSent) response.writeHead(500)
          response.end(JSON.stringify({ error: { message: String(error) } }))
        })
      })
      server.listen(port, '127.0.0.1', () => resolve((server.address() as AddressInfo).port))
    })
  const kill = () =>
    new Promise<void>(resolve => {
      receiver.leave()
      server.close(() => resolve())
      server.closeAllConnections()
    })
  const port = await listen(0)
  return {
    url: `http://127.0.0.1:${port}`,
    faults,
    requests,
    weightsName: () => name,
    weightsDir: () => weightsDir,
    adapters: () => [...adapters.keys()],
    forgetAdapters: () => adapters.clear(),
    rename(next) {
      name = next
    },
    running: () => running,
    kill,
    async restart() {
      policy = await loadPolicy(model)
      adapters.clear()
      name = 'default'
      isPaused = false
      await listen(port)
    },
    close: kill,
  }
}

async function rawLogprobs(policy: Policy, prompt: number[], ids: number[]): Promise<number[]> {
  const sequences = packTokens([[...prompt, ...ids]])
  const rows = {
    rowPositions: Int32Array.from(ids, (_, t) => prompt.length + t - 1),
    tokenIds: Int32Array.from(ids),
  }
  return [...(await policy.logprobs(sequences, rows, 1)).logprobs]
}
