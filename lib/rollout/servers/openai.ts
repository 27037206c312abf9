/** What vLLM and SGLang both take over from OpenAI's interface. */
import { RapoError } from '../../base/errors.js'
import { type Connection, getJson, jsonOf, NoAnswer, Refused } from './http.js'
import type { InferenceServer, ServerCall, ServerFacts } from './server.js'

/** The one model of an OpenAI-compatible server. */
export async function readModel(
  connection: Connection,
  call: ServerCall,
): Promise<Pick<ServerFacts, 'model' | 'maxModelLen'>> {
  const place = `${connection.url}/v1/models`
  const { data } = await getJson(connection, '/v1/models', call)
  const [first] = (Array.isArray(data) ? data : []) as { id?: unknown; max_model_len?: unknown }[]
  if (typeof first?.id !== 'string') throw new RapoError('ERR_RAPO_IO', `${place} names no model`)
  const { id, max_model_len: length } = first
  return { model: id, maxModelLen: typeof length === 'number' ? length : Infinity }
}

/** How a kind of server is told to load an adapter and to forget it. */
export interface AdapterRoutes {
  load(dir: string, name: string, call: ServerCall): Promise<void>
  unload(name: string, call: ServerCall): Promise<void>
}

/** The server with adapters in place of weights: load adds one, and requests name the one to sample with. */
export function withAdapters(
  server: InferenceServer,
  connection: Connection,
  { load, unload }: AdapterRoutes,
): InferenceServer {
  let newest: string | undefined
  /** Adapters are listed among the models. */
  const has = async (name: string, call: ServerCall) => {
    const { data } = await getJson(connection, '/v1/models', call)
    return Array.isArray(data) && data.some(({ id }) => id === name)
  }
  return {
    ...server,
    async load(dir, name, call) {
      await load(dir, name, call)
      newest = name
    },
    unload,
    weightsName: async call =>
      newest !== undefined && (await has(newest, call)) ? newest : 'the model alone',
    async sample(promptIds, sampling, call) {
      try {
        return await server.sample(promptIds, sampling, call)
      } catch (error) {
        const { adapter } = sampling
        const mayBeLost = adapter !== undefined && error instanceof Refused && error.status < 500
        if (!mayBeLost || (await has(adapter, call))) throw error
        throw new NoAnswer(`${server.url} has lost the adapter ${adapter}: it was started again`)
      }
    },
  }
}

export async function tokenizeOn(
  connection: Connection,
  body: object,
  call: ServerCall,
): Promise<number[] | undefined> {
  const answer = await connection.request('/tokenize', { body, ...call })
  // A server without a tokenizer, or without this route.
  if (answer.status !== 200) return undefined
  const { tokens } = jsonOf(`${connection.url}/tokenize`, answer)
  return Array.isArray(tokens) ? (tokens as number[]) : undefined
}
