/** What a run may do with the entropies of its tokens beside the constant bonus of the objective. */
import { RapoError } from '../base/errors.js'

/** Holds the entropy near a target: see adaptEntropyCoef. */
export interface EntropyControl {
  /** Nats a token; below it the coefficient rises, above it falls. */
  readonly target: number
  /** By how much the coefficient changes a step, > 0. */
  readonly step: number
  /** Most that the coefficient may become. Default 1. */
  readonly max?: number
}

/**
 * Adaptive entropy control (Skywork-OR1, arXiv 2505.22312): coefficient is carried from step to step and
 * moves towards the target by a fixed amount; it acts (entropyCoef of this step) only while the entropy is at or below
 * the target.
 *
 * @param entropy of the policy on this step's tokens, before its update: mean, in nats
 * Throws ERR_RAPO_INVALID_ARGUMENT for what is not a number or outside its range.
 */
export function adaptEntropyCoef(
  coefficient: number,
  entropy: number,
  { target, step, max = 1 }: EntropyControl,
): { readonly entropyCoef: number; readonly next: number } {
  check('coefficient', coefficient, 'a finite number >= 0', x => x >= 0)
  check('entropy', entropy, 'a finite number')
  check('target', target, 'a finite number')
  check('step', step, 'a finite number > 0', x => x > 0)
  check('max', max, 'a finite number >= 0', x => x >= 0)
  const moved = entropy < target ? coefficient + step : entropy > target ? coefficient - step : coefficient
  return {
    entropyCoef: entropy <= target ? coefficient : 0,
    next: Math.min(max, Math.max(0, moved)),
  }
}

/**
 * 1 for the share `fraction` of the rows with the highest entropies, 0 for the rest: as LossBatch.policyWeights it
 * leaves the policy term to the tokens at which the model decides something (arXiv 2506.01939: a fifth of them).
 * Taken over a whole batch. Rows that tie with the last one in are in too.
 *
 * topEntropyWeights(Float32Array.of(.1, 2, .3, 1), .5) → 0 1 0 1
 *
 * Throws ERR_RAPO_INVALID_ARGUMENT where fraction is outside (0, 1] or an entropy is not finite.
 */
export function topEntropyWeights(entropies: Float32Array, fraction: number): Float32Array {
  check('fraction', fraction, 'a number in (0, 1]', x => x > 0 && x <= 1)
  entropies.forEach((entropy, i) => {
    check(`entropies[${i}]`, entropy, 'a finite number')
  })
  const kept = Math.ceil(fraction * entropies.length)
  const threshold = entropies.slice().sort().at(-kept) ?? 0
  return entropies.map(entropy => (entropy >= threshold ? 1 : 0))
}

function check(
  field: string,
  value: number,
  expected: string,
  fits: (x: number) => boolean = () => true,
): void {
  if (Number.isFinite(value) && fits(value)) return
  throw new RapoError('ERR_RAPO_INVALID_ARGUMENT', `${field} is ${value}, expected ${expected}`)
}
