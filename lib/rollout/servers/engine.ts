/** The rollout engine that samples on vLLM or SGLang servers: weights go out, are checked by the canary, completions come back. */
import { randomUUID } from 'node:crypto'
import { RapoError, reasonOf } from '../../base/errors.js'
import { notices } from '../../base/notice.js'
import { anySignal } from '../../base/wait.js'
import { type Completion, concat, packTokens } from '../../model/batch.js'
import type { CallOptions, PackedTokens, Policy, SamplingParams } from '../../model/policy.js'
import { checkVersion, noWeights, type RolloutEngine, type SampledCompletions, wasClosed } from '../engine.js'
import { type Canary, checkCanary } from './canary.js'
import { checkContext, checkTakesWeights, checkTokenizer, type KnownText } from './checks.js'
import { createFleet, type Held, isPassing, lost, type Member } from './fleet.js'
import { NoAnswer } from './http.js'
import { type InferenceServer, Interrupted, type ServerCompletion } from './server.js'
import { type PublishedWeights, versionIn, weightsName } from './weights.js'

/** What serverEngine samples with. */
export interface ServerEngineOptions {
  readonly servers: readonly InferenceServer[]
  readonly policy: Pick<Policy, 'logprobs'>
  readonly weights: PublishedWeights
  readonly canary: Canary
  /** What the servers' tokenizers must give too. */
  readonly text?: KnownText | undefined
  /** Tokens of the longest prompt and its completion together. */
  readonly contextNeeded: number
  /** Seconds that an answer, or a server that is gone, is waited for. */
  readonly timeoutSeconds: number
  /** Requests that a server works on at once: each is the group of a prompt. */
  readonly maxInFlight: number
  /** Whether requests carry seeds. */
  readonly sendSeeds: boolean
  /**
   * Whether the policy's weights may change while generate runs. A server that comes back then cannot be checked before the next
   * syncWeights, and generate throws ServersLost where no other is left.
   */
  readonly isOverlapped: boolean
  /** Updates do not wait for calls of generate, which go on with the new weights. Needs isOverlapped. Default false. */
  readonly isInFlight?: boolean
  /** The weights never change, and servers may have been started with them: a server that passes the canary is not given them. */
  readonly isFixed?: boolean
  /**
   * Told, in a text for people, which server is not used and why, or that servers are waited for. Absent: these are warnings of
   * the process.
   */
  readonly onNotice?: ((text: string) => void) | undefined
}

/**
 * Of requests for the same prompt that fail one after the other; one that is given up after timeoutSeconds counts as half of these.
 * A prompt that no server survives must end the run.
 */
const MAX_FAILURES = 8

/** Seconds for answers that need no work. */
const QUICK = 30

/** The completions of one prompt, each with the version of its weights, and who sampled them. */
interface SampledGroup {
  readonly member: Member
  readonly completions: readonly (Completion & {
    readonly version: number
    readonly versions?: readonly number[]
  })[]
}

export function serverEngine(options: ServerEngineOptions): RolloutEngine {
  const { servers, policy, weights, canary, timeoutSeconds, sendSeeds, isOverlapped } = options
  const { isInFlight = false } = options
  const notice = notices(options.onNotice)
  const fleet = createFleet(servers, options.maxInFlight, notice.call)
  const closing = new AbortController()
  const quick = (signal: AbortSignal) => ({ signal, timeoutSeconds: Math.min(QUICK, timeoutSeconds) })
  // Weights of another run, or of an earlier process of this one, never have the same name.
  const run = randomUUID().slice(0, 8)
  const nameOf = (version: number) => weightsName(run, version)
  /** Undefined for the name of weights that this engine did not give. */
  const versionOf = (name: string) => {
    const version = versionIn(name)
    return version !== undefined && name === nameOf(version) ? version : undefined
  }
  let version: number | undefined
  /** Calls of generate under way: syncWeights waits for them, unless updates are made in flight, and they for syncWeights. */
  const sampling = new Set<Promise<unknown>>()
  let syncing: Promise<void> = Promise.resolve()
  let isSyncing = false

  /** Gives a server the weights of now and checks what it then samples. Returns what the server calls them. */
  async function prepare(server: InferenceServer, dir: string, signal: AbortSignal): Promise<Held> {
    const facts = await server.inspect(quick(signal))
    checkContext(server, facts, options.contextNeeded)
    if (options.text) await checkTokenizer(server, options.text, quick(signal))
    const checked = (claim: string) => checkCanary(server, policy, canary, claim, { signal, timeoutSeconds })
    if (options.isFixed && !facts.isPaused) {
      const own = await server.weightsName(quick(signal))
      try {
        await checked(`should hold the weights of ${dir}`)
        return own
      } catch (fault) {
        if (isPassing(fault) || facts.refusesWeights !== undefined) throw fault
      }
    }
    checkTakesWeights(facts)
    const name = nameOf(version!)
    await server.load(dir, name, { signal, timeoutSeconds, isInFlight })
    const held = await server.weightsName(quick(signal))
    if (held !== undefined && held !== name) {
      throw new RapoError('ERR_RAPO_IO', `${server.url} was given the weights ${name} but holds ${held}`)
    }
    if (held === undefined && isOverlapped) {
      throw new RapoError(
        'ERR_RAPO_CONFIG',
        `${server.url} does not tell which weights it holds: rollouts.maxStaleness must be 0 with this release`,
      )
    }
    await checked(`was given the weights ${name}`)
    return held
  }

  async function sync(next: number, signal: AbortSignal): Promise<void> {
    if (next !== version) fleet.outdate()
    version = next
    const dir = await weights.publish(next)
    await fleet.ready(server => prepare(server, dir, signal), next, { signal, timeoutSeconds })
    notice.failed.throwIfAborted()
    weights.keepOnly(next)
  }

  /** A member that may be sent a request. */
  async function acquire(signal: AbortSignal): Promise<Member> {
    for (;;) {
      const member = await fleet.acquire(signal)
      if (member) return member
      if (isSyncing) {
        await syncing.catch(() => {})
        continue
      }
      if (isOverlapped) throw lost(fleet.members)
      await recover(signal)
    }
  }

  let recovering: Promise<void> | undefined
  /** Where all are lost, requests wait together. */
  function recover(signal: AbortSignal): Promise<void> {
    recovering ??= sync(version!, signal).finally(() => (recovering = undefined))
    return recovering
  }

  /** Whether these are the weights that it was given last, or is being given. */
  const isRight = ({ held }: Member, name: Held) => name === held || (isInFlight && name === nameOf(version!))

  /** Whether a server whose request failed still holds the weights of now. */
  async function recheck(member: Member, fault: unknown, signal: AbortSignal): Promise<void> {
    try {
      if (isRight(member, await member.server.weightsName(quick(signal)))) return
    } catch {
      signal.throwIfAborted()
    }
    fleet.lose(member, fault)
  }

  /** The completions of one prompt, and who sampled them. */
  async function sampleGroup(
    promptIds: readonly number[],
    params: SamplingParams & { readonly seed: number },
    signal: AbortSignal,
  ): Promise<SampledGroup> {
    const { seed, maxBatch: _, ...rest } = params
    // vLLM refuses several greedy completions, which would all be the same.
    const isGreedy = rest.temperature === 0
    for (let failures = 0; ; ) {
      const member = await acquire(signal)
      try {
        const request = {
          ...rest,
          ...(isGreedy && { n: 1 }),
          ...(sendSeeds && { seed }),
          withWeights: isInFlight,
        }
        const { version: oldest = version! } = member
        const sampled = await member.server.sample(promptIds, request, { signal, timeoutSeconds })
        const completions = isGreedy ? Array<ServerCompletion>(params.n).fill(sampled[0]!) : sampled
        return { member, completions: completions.map(one => ({ ...one, ...agesOf(member, one, oldest) })) }
      } catch (fault) {
        signal.throwIfAborted()
        if (!isPassing(fault) && !(fault instanceof Interrupted)) throw fault
        const isTimeout = fault instanceof NoAnswer && fault.isTimeout
        failures += isTimeout ? MAX_FAILURES / 2 : 1
        if (failures >= MAX_FAILURES) {
          throw new RapoError(
            'ERR_RAPO_IO',
            `the completions of a prompt failed again and again; the last time: ${reasonOf(fault)}`,
          )
        }
        if (isTimeout) fleet.lose(member, fault)
        else if (!(fault instanceof Interrupted)) await recheck(member, fault, signal)
      } finally {
        fleet.release(member)
      }
    }
  }

  /** The version of a completion, and those of its tokens where they differ. `oldest`: of the server when it was asked. */
  function agesOf({ server }: Member, { weights: spans }: ServerCompletion, oldest: number) {
    if (!spans) return { version: oldest }
    const versions = spans.flatMap(({ name, start, end }) => {
      const version = versionOf(name)
      if (version !== undefined) return Array<number>(end - start).fill(version)
      throw new Interrupted(
        `${server.url}: the weights ${name} sampled a part, which this run did not give it`,
      )
    })
    return { version: versions[0]!, ...(spans.length > 1 && { versions }) }
  }

  /** The members among `used` that did not hold the weights of now until the end. */
  async function findStale(used: ReadonlySet<Member>, signal: AbortSignal): Promise<Set<Member>> {
    const stale = new Set<Member>()
    if (isInFlight) await syncing.catch(() => {})
    await Promise.all(
      [...used].map(async member => {
        const { server, held = nameOf(version!) } = member
        try {
          const now = await server.weightsName(quick(signal))
          if (now !== undefined && isRight(member, now)) return
          if (now === undefined) {
            const claim = `was given the weights ${held}`
            return void (await checkCanary(server, policy, canary, claim, { signal, timeoutSeconds }))
          }
          throw new RapoError(
            'ERR_RAPO_IO',
            `${server.url} holds the weights ${now}, not ${held}: it was started again, or somebody else gave it weights`,
          )
        } catch (fault) {
          signal.throwIfAborted()
          fleet.lose(member, fault)
          stale.add(member)
        }
      }),
    )
    return stale
  }

  async function generate(
    prompts: PackedTokens,
    params: SamplingParams,
    { onProgress }: CallOptions,
    signal: AbortSignal,
  ): Promise<SampledCompletions> {
    const lists = Array.from({ length: prompts.offsets.length - 1 }, (_, i) =>
      Array.from(prompts.tokenIds.subarray(prompts.offsets[i], prompts.offsets[i + 1])),
    )
    const { n, maxNewTokens, seed } = params
    const seedOf = (i: number) => (typeof seed === 'number' ? (seed + i * n) % 2 ** 53 : seed[i]!)
    const groups = new Map<number, SampledGroup>()
    const total = lists.length * n * maxNewTokens
    while (groups.size < lists.length) {
      const missing = [...lists.keys()].filter(i => !groups.has(i))
      // One that fails for good ends the others.
      const failure = new AbortController()
      const all = anySignal(signal, failure.signal)
      await Promise.all(
        missing.map(async i => {
          try {
            groups.set(i, await sampleGroup(lists[i]!, { ...params, seed: seedOf(i) }, all))
            onProgress?.(groups.size * n * maxNewTokens, total)
          } catch (error) {
            failure.abort(error)
          }
        }),
      )
      all.throwIfAborted()
      const used = new Set([...groups.values()].map(({ member }) => member))
      const stale = await findStale(used, signal)
      for (const [i, { member }] of groups) if (stale.has(member)) groups.delete(i)
    }
    const completions = lists.flatMap((_, i) => groups.get(i)!.completions)
    return {
      tokens: packTokens(completions.map(({ tokenIds }) => Array.from(tokenIds))),
      logprobs: concat(completions.map(({ logprobs }) => logprobs)),
      finishReasons: completions.map(({ finishReason }) => finishReason),
      versions: Int32Array.from(completions, completion => completion.version),
      ...(isInFlight && { tokenVersions: completions.map(({ versions }) => versions) }),
    }
  }

  return {
    async generate(prompts, params, callOptions = {}) {
      const signal = anySignal(closing.signal, callOptions.signal)
      signal.throwIfAborted()
      await syncing.catch(() => {})
      if (version === undefined) throw noWeights()
      const running = generate(prompts, params, callOptions, signal)
      sampling.add(running)
      try {
        return await running
      } finally {
        sampling.delete(running)
      }
    },
    syncWeights(next, { signal: given } = {}) {
      const before = syncing
      const run = async () => {
        const signal = anySignal(closing.signal, given)
        signal.throwIfAborted()
        checkVersion(next)
        await before.catch(() => {})
        if (!isInFlight) await Promise.allSettled(sampling)
        isSyncing = true
        try {
          await sync(next, signal)
        } finally {
          isSyncing = false
        }
      }
      syncing = run()
      return syncing
    },
    describe: () => servers.map(({ url }) => url).join(', '),
    async close() {
      closing.abort(wasClosed())
      await Promise.allSettled([...sampling, syncing])
      fleet.close()
      weights.close()
    },
  }
}
