/** Seeded randomness. Nothing in rapo calls Math.random. */
import { createHash } from 'node:crypto'
import { uniformFloat64 } from 'pure-rand/distribution/uniformFloat64'
import { uniformInt } from 'pure-rand/distribution/uniformInt'
import { xoroshiro128plusFromState } from 'pure-rand/generator/xoroshiro128plus'

/**
 * Derives a separate seed for each use from a run's seed and a description of the use, such as deriveSeed(7, 'rollout', step).
 * The seed has 53 bits (a safe integer ≥ 0): FNV-1a over the text of the parts, finished by splitmix64's mixer.
 */
export function deriveSeed(seed: number, ...parts: readonly (string | number)[]): number {
  let hash = 0xcbf29ce484222325n
  for (const byte of Buffer.from(JSON.stringify([seed, ...parts]))) {
    hash = ((hash ^ BigInt(byte)) * 0x100000001b3n) & MASK64
  }
  return Number(mix(hash) >> 11n)
}

export interface Random {
  /** Uniform in [0, 1). */
  float(): number
  /** A uniform integer in [0, limit). */
  below(limit: number): number
  /** One of the items, which must not be empty. */
  pick<T>(items: readonly T[]): T
  /** A new array with the items in a uniformly random order. */
  shuffle<T>(items: readonly T[]): T[]
}

/** A generator whose whole sequence is fixed by the seed (xoroshiro128+). */
export function createRandom(seed: number): Random {
  let state = BigInt(seed)
  const words: number[] = []
  for (let i = 0; i < 2; i++) {
    state = (state + 0x9e3779b97f4a7c15n) & MASK64
    const word = mix(state)
    words.push(Number(word & 0xffffffffn) | 0, Number(word >> 32n) | 0)
  }
  const generator = xoroshiro128plusFromState(words)
  const below = (limit: number) => uniformInt(generator, 0, limit - 1)
  return {
    float: () => uniformFloat64(generator),
    below,
    pick: items => items[below(items.length)]!,
    shuffle(items) {
      const result = [...items]
      for (let i = result.length - 1; i > 0; i--) {
        const j = below(i + 1)
        const item = result[i]!
        result[i] = result[j]!
        result[j] = item
      }
      return result
    },
  }
}

const MASK64 = (1n << 64n) - 1n

/** splitmix64's finaliser. */
function mix(value: bigint): bigint {
  let z = value
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK64
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & MASK64
  return z ^ (z >> 31n)
}

/** A hash of a value's JSON: equal values have equal hashes. */
export function digest(value: unknown): string {
  return createHash('sha256').update(JSON.stringify(value)).digest('hex').slice(0, 16)
}
