/** Rewards of a completion's length alone. */
import { RapoError } from '../base/errors.js'
import { plural } from '../base/text.js'
import type { Verdict, VerifyContext } from './verifier.js'

/** The reward function `length`: 1 − tokens / maxNewTokens, so that the shorter of two completions gets more. */
export function lengthReward(context: VerifyContext): Verdict {
  const { tokens, maxNewTokens } = lengthsOf(context)
  return { reward: 1 - tokens / maxNewTokens, reason: `${tokens} of ${plural(maxNewTokens, 'token')}` }
}

/**
 * DAPO's soft overlong punishment (arXiv 2503.14476, equation 13): 0 for a completion of at most maxNewTokens − buffer
 * tokens, then falling linearly to −1 at maxNewTokens.
 */
export function overlongPunishment(context: VerifyContext, buffer: number): Verdict {
  const { tokens, maxNewTokens } = lengthsOf(context)
  const over = tokens - (maxNewTokens - buffer)
  if (over <= 0) return { reward: 0, reason: 'short enough' }
  return { reward: -over / buffer, reason: `${plural(over, 'token')} into the buffer of ${buffer}` }
}

function lengthsOf({ tokens, maxNewTokens }: VerifyContext) {
  if (tokens !== undefined && maxNewTokens !== undefined) return { tokens, maxNewTokens }
  throw new RapoError(
    'ERR_RAPO_INVALID_ARGUMENT',
    "the context has no tokens and maxNewTokens: a completion's length is known where it was sampled",
  )
}
