/** What vLLM and SGLang both take over from OpenAI's interface. */
import { RapoError } from '../../base/errors.js'
import { type Connection, getJson, jsonOf, NoAnswer, Refused } from './http.js'
import type { ServerCall, ServerFacts } from './server.js'

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

/** The names of all models; adapters are among them. */
export async function listModels(connection: Connection, call: ServerCall): Promise<string[]> {
  const { data } = await getJson(connection, '/v1/models', call)
  return (Array.isArray(data) ? data : []).map(({ id }) => String(id))
}

/** What a server of adapters is asked of them, beside what differs between vLLM and SGLang. */
export function adapterKeeper(connection: Connection) {
  let newest: string | undefined
  const has = async (name: string, call: ServerCall) => (await listModels(connection, call)).includes(name)
  return {
    loaded(name: string) {
      newest = name
    },
    weightsName: async (call: ServerCall): Promise<string> =>
      newest !== undefined && (await has(newest, call)) ? newest : 'the model alone',
    /** Runs a request that names an adapter. Throws NoAnswer where the server has lost the adapter. */
    async sampling<T>(name: string | undefined, call: ServerCall, request: () => Promise<T>): Promise<T> {
      try {
        return await request()
      } catch (error) {
        const mayBeLost = name !== undefined && error instanceof Refused && error.status < 500
        if (!mayBeLost || (await has(name, call))) throw error
        throw new NoAnswer(`${connection.url} has lost the adapter ${name}: it was started again`)
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
