/** Environments: tasks of several turns, in which the model's completions are answered until the task is done. */
import { RapoError } from '../base/errors.js'
import { reasonAndPlace } from '../base/thrown.js'
import { answerOf, anySignal, TooLate } from '../base/wait.js'
import type { Problem } from '../data/problems.js'
import type { FinishReason } from '../model/policy.js'
import { asText, type Patience, type Verifier } from './verifier.js'

/** What an environment is told of a turn beside the completion. */
export interface TurnContext {
  /** The number of the turn, from 1. */
  readonly turn: number
  /** task.maxTurns. */
  readonly maxTurns: number
  /** No turn can follow, since this is the last one or the episode has no tokens left. */
  readonly isLast: boolean
  /** Tokens that the episode may still grow by: those of the observation and of the next completions. */
  readonly tokensLeft: number
  /** `length` where the completion was cut off. */
  readonly finishReason: FinishReason
  /** Aborted when the run ends early, and when the answer comes too late (task.timeout). */
  readonly signal: AbortSignal
}

/** The environment goes on: what the model reads before its next turn. */
export interface Observation {
  readonly observation: string
  /** The role of the message in a chat template, such as tool. Default: user. */
  readonly role?: string | undefined
  readonly done?: false
}

/** The episode is over. */
export interface EpisodeEnd {
  readonly done: true
  /** Finite; 1 is solved. Absent: task.verifier judges the last completion. */
  readonly reward?: number | undefined
  /** One line for a person: why this reward. */
  readonly reason?: string | undefined
}

/** What `step` may return; a text alone is an observation. */
export type EnvironmentResult = string | Observation | EpisodeEnd

/**
 * A task of several turns. Several episodes are in progress at once, each with its own state. Whatever a function throws,
 * or returns that is none of its results, ends the run with a message that names the problem.
 */
export interface Environment<State = unknown> {
  /** Starts an episode of the problem. The state is passed to step and never looked at. */
  reset(problem: Problem): State | Promise<State>
  /** Answers the completion of one turn, without the token that ended it. */
  step(state: State, completion: string, context: TurnContext): EnvironmentResult | Promise<EnvironmentResult>
  /** As Verifier.checkAnswer. */
  checkAnswer?(answer: unknown): string | undefined
}

/** An environment that is in use. */
export interface NamedEnvironment extends Environment {
  readonly name: string
}

/**
 * Judges episodes: the verifier where there is one, which an environment asks for by an end without a reward. An
 * answer must be right for both.
 */
export function environmentVerifier(environment: NamedEnvironment, verifier?: Verifier): Verifier {
  return {
    checkAnswer: answer => environment.checkAnswer?.(answer) ?? verifier?.checkAnswer(answer),
    verify(...args) {
      if (verifier) return verifier.verify(...args)
      throw new Error(
        `the environment ${environment.name} ended the episode without a reward, and there is no task.verifier`,
      )
    },
  }
}

/** The environment's answer to a completion: it goes on, or it ends. */
type Answer = { readonly done?: undefined; readonly observation: string; readonly role: string } | EpisodeEnd

/** Starts an episode. Throws a RapoError that names the problem. */
export function resetEpisode(
  environment: NamedEnvironment,
  problem: Problem,
  { timeout, signal }: Patience,
): Promise<unknown> {
  const what = `reset of the environment ${environment.name} failed on problem "${problem.id}"`
  return called(() => environment.reset(problem), what, { timeout, signal })
}

/**
 * The environment's answer to a completion. An answer that comes too late ends the episode with reward 0 where onTimeout
 * is zero. Throws a RapoError that names the problem and the turn.
 */
export async function stepEpisode(
  environment: NamedEnvironment,
  problem: Problem,
  state: unknown,
  completion: string,
  context: Omit<TurnContext, 'signal'>,
  { timeout, onTimeout = 'error', signal }: Patience,
): Promise<Answer> {
  const what = `step of the environment ${environment.name} failed on problem "${problem.id}", turn ${context.turn}, completion ${JSON.stringify(completion)}`
  const given = new AbortController()
  const step = async () =>
    toResult(
      await environment.step(state, completion, { ...context, signal: anySignal(signal, given.signal) }),
    )
  try {
    return await called(step, what, { timeout, signal })
  } catch (error) {
    given.abort(error)
    const isLate = error instanceof RapoError && error.cause instanceof TooLate
    if (isLate && onTimeout === 'zero')
      return { done: true, reward: 0, reason: `no answer within ${timeout} seconds` }
    throw error
  }
}

async function called<T>(call: () => T | PromiseLike<T>, what: string, { timeout, signal }: Patience) {
  try {
    return await answerOf(call(), { signal, timeout })
  } catch (cause) {
    if (signal?.aborted && cause === signal.reason) throw cause
    throw new RapoError('ERR_RAPO_INTERNAL', `${what}: ${reasonAndPlace(cause)}`, { cause })
  }
}

/** Throws where it is none. */
function toResult(result: unknown): Answer {
  const wanted =
    'it must return a text, or { observation: a text, role: a text }, or { done: true, reward: a number, reason: a text }; role, reward and reason may be left out'
  const {
    observation,
    role = 'user',
    done = false,
    reward,
    reason = '',
  } = (typeof result === 'string' ? { observation: result } : (result ?? {})) as Record<string, unknown>
  const check = (isRight: boolean, what: string) => {
    if (!isRight) throw new Error(`${what}; it returned ${asText(result)}, but ${wanted}`)
  }
  check(typeof done === 'boolean', `its done is ${asText(done)}`)
  if (done) {
    check(observation === undefined, 'it is done and has an observation')
    check(reward === undefined || Number.isFinite(reward), `its reward is ${asText(reward)}`)
    check(typeof reason === 'string', `its reason is ${asText(reason)}, which is no text`)
    return { done, ...(reward !== undefined && { reward }), reason } as Answer
  }
  check(typeof observation === 'string', `its observation is ${asText(observation)}`)
  check(typeof role === 'string' && role !== '', `its role is ${asText(role)}`)
  check(reward === undefined, 'it has a reward, but is not done')
  return { observation, role } as Answer
}
