/** What a server must be like before it is used, beside what the canary finds. */
import { RapoError } from '../../base/errors.js'
import type { Tokenizer } from '../../model/tokenizer.js'
import type { InferenceServer, ServerCall, ServerFacts } from './server.js'

/** A text and its token ids. */
export interface KnownText {
  readonly text: string
  readonly tokenIds: readonly number[]
}

export function knownText(text: string, { encode }: Pick<Tokenizer, 'encode'>): KnownText {
  return { text, tokenIds: encode(text) }
}

/** @param needed tokens of the longest prompt and its completion together */
export function checkContext({ url }: InferenceServer, { maxModelLen }: ServerFacts, needed: number): void {
  if (needed <= maxModelLen) return
  throw new RapoError(
    'ERR_RAPO_CONFIG',
    `${url} takes prompt and completion of at most ${maxModelLen} tokens together; ${needed} are needed: start it with a longer context (--max-model-len, --context-length)`,
  )
}

/** Throws where the server makes other token ids of the text. A server that does not tell is passed. */
export async function checkTokenizer(
  server: InferenceServer,
  { text, tokenIds }: KnownText,
  call: ServerCall,
): Promise<void> {
  const theirs = await server.tokenize(text, call)
  if (!theirs || String(theirs) === String(tokenIds)) return
  throw new RapoError(
    'ERR_RAPO_CONFIG',
    `${server.url} has another tokenizer than the model: ${JSON.stringify(text.slice(0, 40))}… is ${theirs.length} tokens there and ${tokenIds.length} here`,
  )
}

export function checkTakesWeights({ refusesWeights }: ServerFacts): void {
  if (refusesWeights !== undefined) throw new RapoError('ERR_RAPO_CONFIG', refusesWeights)
}
