/** Uses of the tokens' entropies beside the objective's constant bonus. */
import { RapoError } from '../base/errors.js'

/** Options for keeping the entropy near a target: see adaptEntropyCoef. */
export interface EntropyControl {
  /** Nats per token. The coefficient rises if the entropy is below, and falls if it is above. */
  readonly target: number
  /** Change of the coefficient per step, > 0. */
  readonly step: number
  /** Upper bound of the coefficient. Default 1. */
  readonly max?: number
}

/**
 * Adaptive entropy control (Skywork-OR1, arXiv 2505.22312). The caller carries the coefficient from step to step; each step
 * moves it by a fixed amount towards the target. The coefficient acts (as this step's entropyCoef) only while the entropy is at
 * or below the target.
 *
 * @param entropy the policy's mean entropy on this step's tokens before the update, in nats
 * Throws ERR_RAPO_INVALID_ARGUMENT for a value that is not a number or outside its range.
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
 * Returns 1 for the share `fraction` of the rows with the highest entropies, and 0 for the rest. As LossBatch.policyWeights
 * this restricts the policy term to the tokens at which the model decides something (arXiv 2506.01939 uses a fifth of them).
 * Call it with the rows of a whole batch. Rows with the same entropy as the last selected row are selected too.
 *
 * topEntropyWeights(Float32Array.of(.1, 2, .3, 1), .5) → 0 1 0 1
 *
 * Throws ERR_RAPO_INVALID_ARGUMENT if fraction is outside (0, 1] or an entropy is not finite.
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
