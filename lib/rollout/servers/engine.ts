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
import { versionIn, type WeightSync, weightsName } from './sync.js'

/** What serverEngine samples with. */
export interface ServerEngineOptions {
  readonly servers: readonly InferenceServer[]
  readonly policy: Pick<Policy, 'logprobs'>
  readonly weights: WeightSync
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
  /**
   * Where the weights are, if they never change. Servers may have been started with them: a server that passes the canary is not
   * given them.
   */
  readonly fixedDir?: string | undefined
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
  const { servers, policy, weights, canary, timeoutSeconds, sendSeeds, isOverlapped, fixedDir } = options
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
  /** Requests under way of each version, where they name the weights. */
  const using = new Map<number, number>()
  const use = (version: number, change: 1 | -1) => {
    const count = (using.get(version) ?? 0) + change
    if (count > 0) using.set(version, count)
    else using.delete(version)
  }
  /** Throws where the server's log-probs are not those of the policy, under the weights of this name where requests name them. */
  const compare = (server: InferenceServer, claim: string, signal: AbortSignal, name?: string) => {
    const adapter = weights.isNamed ? name : undefined
    return checkCanary(server, policy, canary, claim, { signal, timeoutSeconds }, adapter)
  }

  /** Whether a server must be given the weights of now. If not, what it calls its own, which are right. */
  async function check(
    server: InferenceServer,
    signal: AbortSignal,
  ): Promise<{ readonly held: Held } | undefined> {
    const facts = await server.inspect(quick(signal))
    checkContext(server, facts, options.contextNeeded)
    if (options.text) await checkTokenizer(server, options.text, quick(signal))
    if (fixedDir !== undefined && !facts.isPaused) {
      const held = await server.weightsName(quick(signal))
      try {
        await compare(server, `should hold the weights of ${fixedDir}`, signal)
        return { held }
      } catch (fault) {
        if (isPassing(fault) || facts.refusesWeights !== undefined) throw fault
      }
    }
    checkTakesWeights(facts)
    return undefined
  }

  /** Checks what a server samples that was given the weights of now. Returns what the server calls them. */
  async function verify(server: InferenceServer, signal: AbortSignal): Promise<Held> {
    const name = nameOf(version!)
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
    await compare(server, `was given the weights ${name}`, signal, name)
    return held
  }

  /** Gives servers the weights of now, together, and checks each. */
  async function prepare(
    servers: readonly InferenceServer[],
    signal: AbortSignal,
  ): Promise<PromiseSettledResult<Held>[]> {
    const checks = await Promise.allSettled(servers.map(server => check(server, signal)))
    signal.throwIfAborted()
    const takers = servers.filter((_, i) => {
      const result = checks[i]!
      return result.status === 'fulfilled' && result.value === undefined
    })
    const update = { version: version!, name: nameOf(version!) }
    const given = await weights.give(takers, update, { signal, timeoutSeconds, isInFlight })
    const outcome = async (server: InferenceServer, i: number): Promise<Held> => {
      const checked = checks[i]!
      if (checked.status === 'rejected') throw checked.reason
      if (checked.value) return checked.value.held
      const gift = given[takers.indexOf(server)]!
      if (gift.status === 'rejected') throw gift.reason
      return verify(server, signal)
    }
    return Promise.allSettled(servers.map(outcome))
  }

  async function sync(next: number, signal: AbortSignal): Promise<void> {
    if (next !== version) fleet.outdate()
    version = next
    const call = { signal, timeoutSeconds }
    await fleet.ready(servers => prepare(servers, signal), next, call)
    notice.failed.throwIfAborted()
    await weights.keepOnly(next, new Set(using.keys()), call)
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
      const { version: oldest = version! } = member
      use(oldest, 1)
      try {
        const request = {
          ...rest,
          ...(isGreedy && { n: 1 }),
          ...(sendSeeds && { seed }),
          ...(weights.isNamed ? { adapter: nameOf(oldest) } : { withWeights: isInFlight }),
        }
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
        use(oldest, -1)
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
            return void (await compare(server, `was given the weights ${held}`, signal))
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
      await weights.close()
      fleet.close()
    },
  }
}
