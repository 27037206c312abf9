/**
 * The canary: a few short completions of a server, whose log-probs must be the policy's own. It finds what no answer tells: weights
 * that were not updated or only in part, another model, log-probs at another temperature.
 */
import { RapoError } from '../../base/errors.js'
import { type Completion, packBatch, toSequence } from '../../model/batch.js'
import type { CallOptions, Policy } from '../../model/policy.js'
import type { InferenceServer, ServerCall } from './server.js'

/** What a server is asked for, and how near its log-probs must be. */
export interface Canary {
  /** Each gets COMPLETIONS / prompts.length completions. */
  readonly prompts: readonly (readonly number[])[]
  readonly temperature: number
  readonly maxNewTokens: number
  readonly stopTokenIds: readonly number[]
  /** Of the mean of |log-prob of the server − log-prob of the policy|, in nats. */
  readonly tolerance: number
}

/** Mean and largest |difference| of log-probs, in nats, over so many tokens. */
export interface Difference {
  readonly mean: number
  readonly max: number
  readonly tokens: number
}

/** What a canary samples in all, and tokens of each at most: enough that one token of chance decides nothing. */
const COMPLETIONS = 16
const LENGTH = 16

/**
 * Throws ERR_RAPO_IO where the server's log-probs are not the policy's.
 * @param claim what the message says of its weights, such as: was given the weights v3
 * @param adapter the name of the adapter to sample with
 */
export async function checkCanary(
  server: InferenceServer,
  policy: Pick<Policy, 'logprobs'>,
  canary: Canary,
  claim: string,
  call: ServerCall,
  adapter?: string,
): Promise<Difference> {
  const { prompts, temperature, stopTokenIds, tolerance } = canary
  const maxNewTokens = Math.min(LENGTH, canary.maxNewTokens)
  const n = Math.ceil(COMPLETIONS / prompts.length)
  const sampling = { n, maxNewTokens, temperature, stopTokenIds, ...(adapter !== undefined && { adapter }) }
  const groups = await Promise.all(prompts.map(prompt => server.sample(prompt, sampling, call)))
  const sampled = groups.flatMap((group, i) =>
    group.map(completion => ({ promptIds: prompts[i]!, ...completion })),
  )
  const difference = await compare(policy, sampled, temperature, call)
  if (difference.mean <= tolerance) return difference
  const shown = `${difference.mean.toPrecision(3)} nats a token on average (largest ${difference.max.toPrecision(3)}, ${difference.tokens} tokens)`
  const raw = temperature === 1 ? undefined : await compare(policy, sampled, 1, call)
  const hint =
    raw && raw.mean <= tolerance
      ? 'they are those at temperature 1: start vllm serve with --logprobs-mode processed_logprobs'
      : 'the server computes in another dtype than model.dtype (bfloat16 needs rollouts.canaryTolerance 0.05), or it holds another model, or only a part of the new weights (docs/servers.md)'
  throw new RapoError(
    'ERR_RAPO_IO',
    `${server.url} ${claim}, but its log-probs differ from the policy's by ${shown}; rollouts.canaryTolerance allows ${tolerance}; ${hint}`,
  )
}

async function compare(
  policy: Pick<Policy, 'logprobs'>,
  sampled: readonly (Completion & { readonly promptIds: readonly number[] })[],
  temperature: number,
  { signal }: CallOptions,
): Promise<Difference> {
  const batch = packBatch(
    sampled.map(({ promptIds, tokenIds }) => toSequence(promptIds, tokenIds, { advantage: 0 })),
    sampled.map(() => 1),
  )
  const { logprobs } = await policy.logprobs(batch.sequences, batch, temperature, { signal })
  const theirs = sampled.flatMap(completion => Array.from(completion.logprobs))
  const differences = theirs.map((logprob, i) => Math.abs(logprob - logprobs[i]!))
  const tokens = differences.length
  return {
    mean: differences.reduce((sum, x) => sum + x, 0) / tokens,
    max: differences.reduce((a, b) => Math.max(a, b)),
    tokens,
  }
}
