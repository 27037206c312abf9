/** What vLLM and SGLang both take over from OpenAI's interface. */
import { RapoError } from '../../base/errors.js'
import { type Connection, getJson, jsonOf } from './http.js'
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
