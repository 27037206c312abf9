/**
 * The maximisers of the RAPO paper's three objectives over a finite set of outcomes (arXiv 2510.03865, section 3), in closed
 * form and by gradient ascent on the objective. docs/theory.md has formulas, proofs and the figure.
 */
import { invalid } from '../base/errors.js'

/**
 * The objectives, which are maximised over distributions π:
 * - `reverse-kl`: Σ π r − α KL(π ‖ p), Lemma 3.1
 * - `forward-kl`: Σ π r − α KL(p ‖ π), Lemma 3.2
 * - `forward-kl-entropy`: Σ π r − α KL(p ‖ π) + β H(π), Proposition 3.3
 */
export const theoryObjectives = ['reverse-kl', 'forward-kl', 'forward-kl-entropy'] as const
/** One of theoryObjectives. */
export type TheoryObjective = (typeof theoryObjectives)[number]

/**
 * A finite set of outcomes with rewards and reference. The ranges exclude only mistakes and values that double precision cannot
 * handle.
 */
export interface TheoryProblem {
  /** r, one per outcome, each in [−1e6, 1e6]. */
  readonly rewards: ArrayLike<number>
  /** p, one per outcome, ≥ 0. The sum must be 1 within 1e-6; p is divided by its sum. */
  readonly reference: ArrayLike<number>
  /** α in [1e-6, 1e6]. */
  readonly klCoef: number
  /** β in [1e-6, 1e6]; only `forward-kl-entropy` reads it. */
  readonly entropyCoef: number
}

/** The result of theoryDescent. */
export interface TheoryDescent {
  /** π, one per outcome. */
  readonly policy: Float64Array
  /** Number of gradients that were computed. */
  readonly gradients: number
  /** Whether another step would change no probability by more than 1e-13; false after 20 000 gradients. */
  readonly converged: boolean
}

/** The problem of the paper's Figure 2: no reference mass on 0, 1, 2, 13, 14, 15. Rewards and coefficients are ours. */
export const figure2: TheoryProblem & Record<'rewards' | 'reference', readonly number[]> = {
  rewards: [0.7, 0.9, 0.8, 0.3, 0.1, 0, 0.2, 0.5, 0.4, 0.1, 0, 0.1, 0.3, 0.85, 1, 0.75],
  reference: [0, 0, 0, 0.02, 0.06, 0.12, 0.18, 0.22, 0.16, 0.12, 0.07, 0.03, 0.02, 0, 0, 0],
  klCoef: 0.3,
  entropyCoef: 0.1,
}

/**
 * The maximiser π in closed form, one entry per outcome. `forward-kl` can have several maximisers (equal highest rewards
 * without reference mass); the result is the one that treats these outcomes alike. Throws ERR_RAPO_INVALID_ARGUMENT, which
 * names field, value and range.
 */
export function theoryOptimum(objective: TheoryObjective, problem: TheoryProblem): Float64Array {
  const checked = check(objective, problem)
  if (objective === 'reverse-kl') return reverseKlOptimum(checked)
  return objective === 'forward-kl' ? forwardKlOptimum(checked) : forwardKlEntropyOptimum(checked)
}

/**
 * The objective's value for a policy (a distribution over the outcomes); −Infinity if the KL is infinite. Throws as
 * theoryOptimum does.
 */
export function theoryValue(
  objective: TheoryObjective,
  problem: TheoryProblem,
  policy: ArrayLike<number>,
): number {
  const { rewards, reference } = check(objective, problem)
  const { klCoef, entropyCoef } = problem
  const pi = distribution('policy', policy, rewards.length)
  let value = 0
  pi.forEach((x, i) => {
    value += x * problem.rewards[i]!
    value -= klCoef * (objective === 'reverse-kl' ? klTerm(x, reference[i]!) : klTerm(reference[i]!, x))
    if (objective === 'forward-kl-entropy') value -= entropyCoef * klTerm(x, 1)
  })
  return value
}

/** a log(a/b) with 0 log 0 = 0. */
const klTerm = (a: number, b: number) => (a === 0 ? 0 : a * Math.log(a / b))

interface Checked {
  /** r − max r. This changes no maximiser and avoids cancellation. */
  readonly rewards: Float64Array
  readonly reference: Float64Array
  readonly alpha: number
  readonly beta: number
}

/** π ∝ p exp(r/α). */
function reverseKlOptimum({ rewards, reference, alpha }: Checked): Float64Array {
  return softmax(reference.map((p, i) => Math.log(p) + rewards[i]! / alpha)).policy
}

/**
 * π = αp/(λ − r) with Σ π = 1, unless the highest reward belongs to outcomes with p = 0 and exceeds that λ. In that case λ is
 * the highest reward, and these outcomes get the mass that Σ αp/(λ − r) leaves.
 */
function forwardKlOptimum({ rewards, reference, alpha }: Checked): Float64Array {
  const top = maxOf(rewards.filter((_, i) => reference[i]! > 0))
  const isBeyond = reference.map((p, i) => (p === 0 && rewards[i]! > top && rewards[i] === 0 ? 1 : 0))
  const mass = (lambda: number) =>
    reference.map((p, i) => (p === 0 ? 0 : (alpha * p) / (lambda + (top - rewards[i]!))))
  const beyond = sum(isBeyond)
  if (beyond > 0) {
    const policy = mass(-top)
    const rest = 1 - sum(policy)
    if (rest >= 0) return policy.map((x, i) => x + (isBeyond[i]! * rest) / beyond)
  }
  // From here on λ stands for λ − top. Lower bounds follow from π ≤ 1 for each outcome; an upper bound from λ − r ≥ λ for all
  // r.
  const least = maxOf(reference.map((p, i) => (p === 0 ? 0 : alpha * p - (top - rewards[i]!))))
  return mass(decreasingRoot(lambda => sum(mass(lambda)) - 1, least, alpha))
}

/** With κ = (λ + β − r)/β: π = (αp/β)/W((αp/β) e^κ), and e^−κ where p = 0. */
function forwardKlEntropyOptimum({ rewards, reference, alpha, beta }: Checked): Float64Array {
  const mass = (shifted: number) =>
    reference.map((p, i) => {
      const kappa = (shifted - rewards[i]!) / beta
      if (p === 0) return Math.exp(-kappa)
      const c = (alpha * p) / beta
      const y = kappa + Math.log(c)
      const w = logLambertW(y)
      // π can be written as c/w or as e^(w − κ). A small w must not be a divisor.
      return y > 0 ? c / w : Math.exp(w - kappa)
    })
  // λ + β − max r: π ≤ 1 means κ ≥ αp/β for each outcome; Σ π times stationarity is α + β H(π) + Σ π (r − max r).
  const least = maxOf(reference.map((p, i) => Math.max(0, alpha * p + rewards[i]!)))
  const most = (alpha + beta * Math.log(rewards.length)) * (1 + 1e-12)
  return mass(decreasingRoot(shifted => sum(mass(shifted)) - 1, least, most))
}

/** W(e^y) on the principal branch, computed without e^y: the w > 0 with w + log w = y (the Wright omega function). */
export function logLambertW(y: number): number {
  // w ≈ e^y for small ones, y − log y for large ones; Newton on the convex side of a concave function.
  let w = y < 0 ? Math.exp(y) / (1 + Math.exp(y)) : y > 2 ? y - Math.log(y) : (1 + y) / 2
  if (y < -36) return Math.exp(y)
  for (let i = 0; i < 20; i++) {
    const next = (w * (1 + y - Math.log(w))) / (1 + w)
    if (Math.abs(next - w) <= 2 ** -52 * w) return next
    w = next
  }
  return w
}

/** The root of a decreasing function between low and high, to the last bit. */
function decreasingRoot(f: (x: number) => number, low: number, high: number): number {
  for (;;) {
    const middle = low > 0 && high > 4 * low ? Math.sqrt(low) * Math.sqrt(high) : low + (high - low) / 2
    if (!(middle > low && middle < high)) return high
    if (f(middle) > 0) low = middle
    else high = middle
  }
}

const MOST_GRADIENTS = 20_000
const MOST_STEPS = 60
/** Change of a probability in one step: far below the accuracy that is asked for, and above rounding errors. */
const SMALLEST_CHANGE = 1e-13

/**
 * The same maximiser by first-order ascent on the objective, over the logits of π. The start is the uniform distribution (for
 * `reverse-kl`, which is −∞ elsewhere, uniform on p's support). The method is conjugate gradients with a diagonal
 * preconditioner; the sign of the slope finds the step along each direction. The method does not use λ. Throws as theoryOptimum
 * does.
 */
export function theoryDescent(objective: TheoryObjective, problem: TheoryProblem): TheoryDescent {
  const checked = check(objective, problem)
  const start = checked.reference.map(p => (objective === 'reverse-kl' && p === 0 ? -Infinity : 0))
  let at = evaluate(objective, checked, start)
  let gradients = 1
  let direction = at.step
  while (gradients < MOST_GRADIENTS) {
    if (isDone(at)) return { policy: at.policy, gradients, converged: true }
    if (!(dot(at.gradient, direction) > 0)) direction = at.step
    const found = climb(objective, checked, at, direction)
    gradients += found.gradients
    const next = found.point
    // Polak and Ribière's method, restarted where the factor is negative.
    const turned = dot(
      next.gradient.map((x, i) => x - at.gradient[i]!),
      next.step,
    )
    const momentum = Math.max(0, turned / dot(at.gradient, at.step))
    direction = next.step.map((x, i) => x + momentum * direction[i]!)
    at = next
  }
  return { policy: at.policy, gradients, converged: false }
}

/** The end also requires that no probability near 0 would grow. */
function isDone({ step, policy }: Evaluation): boolean {
  return step.every((x, i) => Math.abs(x) * policy[i]! <= SMALLEST_CHANGE && x <= 1e-3)
}

interface Evaluation {
  readonly logits: Float64Array
  readonly policy: Float64Array
  /** J without constants, and the size of the terms that it is added up from. */
  readonly value: number
  readonly size: number
  /** dJ/dz. */
  readonly gradient: Float64Array
  /** The gradient divided by the preconditioner. */
  readonly step: Float64Array
}

/** Computed with G = π dJ/dπ, which needs no division by π: dJ/dz = G − π Σ G. */
function evaluate(objective: TheoryObjective, problem: Checked, logits: Float64Array): Evaluation {
  const { rewards, reference, alpha, beta } = problem
  const { policy, logPolicy } = softmax(logits)
  const curvature = new Float64Array(policy.length)
  let [value, size] = [0, 0]
  const pull = policy.map((x, i) => {
    const [r, p, l] = [rewards[i]!, reference[i]!, logPolicy[i]!]
    const add = (term: number, parts: number) => {
      value += term
      size += Math.abs(parts)
      return term
    }
    if (objective === 'reverse-kl') {
      curvature[i] = alpha * x
      if (x === 0) return 0
      return add(x * (r - alpha * (l - Math.log(p))), x * (alpha * (l + Math.log(p)) + r))
    }
    const weight = objective === 'forward-kl' ? 0 : beta
    const own = x === 0 ? 0 : x * (r - weight * l)
    const held = p === 0 ? 0 : alpha * p
    curvature[i] = held + weight * x
    add(own, own)
    if (p > 0) add(held * l, held * l)
    return own + held
  })
  const total = sum(pull)
  const gross = sum(pull.map(Math.abs))
  const gradient = pull.map((x, i) => {
    const g = x - policy[i]! * total
    return Math.abs(g) > 2 ** -50 * (Math.abs(x) + policy[i]! * gross) ? g : 0 // a smaller value is a rounding error
  })
  // The diagonal of minus the Hessian at a maximum. Elsewhere the size of the gradient, which is 0 at a maximum, bounds a step:
  // no logit moves by more than 1, and the logit of a probability that ends at 0 moves by exactly 1.
  const allCurvature = sum(curvature)
  const step = gradient.map((x, i) => {
    const [c, pi] = [curvature[i]!, policy[i]!]
    const scale = c * (1 - pi) ** 2 + pi * pi * (allCurvature - c) + Math.abs(x)
    return x === 0 ? 0 : x / scale
  })
  return { logits, policy, value, size, gradient, step }
}

/**
 * Moves along the direction, never to a lower value, until the slope is a tenth of the slope here, or as near as rounding
 * allows.
 */
function climb(objective: TheoryObjective, problem: Checked, from: Evaluation, direction: Float64Array) {
  const slopeAt = (point: Evaluation) => dot(point.gradient, direction)
  const along = (t: number) =>
    evaluate(
      objective,
      problem,
      from.logits.map((z, i) => z + t * direction[i]!),
    )
  const enough = 0.1 * slopeAt(from)
  let [low, high] = [0, Infinity]
  let [lowSlope, highSlope] = [slopeAt(from), 0]
  let t = 1
  for (let gradients = 1; ; gradients++) {
    const point = along(t)
    const slope = slopeAt(point)
    const isLower = point.value < from.value - 1e-13 * (from.size + point.size)
    if (Math.abs(slope) <= enough && !isLower) return { point, gradients }
    if (gradients === MOST_STEPS) return { point: along(low), gradients }
    if (slope > 0 && !isLower) [low, lowSlope] = [t, slope]
    else [high, highSlope] = [t, slope]
    if (high === Infinity) {
      t *= 2
      continue
    }
    const secant = highSlope < 0 ? low + ((high - low) * lowSlope) / (lowSlope - highSlope) : (low + high) / 2
    const margin = 0.1 * (high - low)
    t = Math.min(high - margin, Math.max(low + margin, secant))
  }
}

function softmax(logits: Float64Array): { policy: Float64Array; logPolicy: Float64Array } {
  const max = maxOf(logits)
  const logSum = Math.log(sum(logits.map(z => Math.exp(z - max))))
  const logPolicy = logits.map(z => z - max - logSum)
  return { policy: logPolicy.map(Math.exp), logPolicy }
}

const sum = (values: Float64Array) => values.reduce((x, y) => x + y, 0)
const maxOf = (values: Float64Array) => values.reduce((x, y) => Math.max(x, y), -Infinity)
const dot = (a: Float64Array, b: Float64Array) => a.reduce((x, y, i) => x + y * b[i]!, 0)

function check(objective: TheoryObjective, problem: TheoryProblem): Checked {
  if (!theoryObjectives.includes(objective)) {
    invalid(`objective is ${objective}, expected one of ${theoryObjectives.join(', ')}`)
  }
  const { klCoef, entropyCoef } = problem
  const coefficient = (field: string, value: number) => {
    if (!(typeof value === 'number' && value >= 1e-6 && value <= 1e6)) {
      invalid(`${field} is ${value}, expected a number in [1e-6, 1e6]`)
    }
  }
  coefficient('klCoef', klCoef)
  if (objective === 'forward-kl-entropy') coefficient('entropyCoef', entropyCoef)
  const rewards = Float64Array.from(problem.rewards)
  if (rewards.length === 0) invalid('rewards is empty, expected one an outcome')
  rewards.forEach((r, i) => {
    if (!(Math.abs(r) <= 1e6)) invalid(`rewards[${i}] is ${r}, expected a number in [-1e6, 1e6]`)
  })
  const top = maxOf(rewards)
  const reference = distribution('reference', problem.reference, rewards.length)
  return { rewards: rewards.map(r => r - top), reference, alpha: klCoef, beta: entropyCoef }
}

/** Divides by the sum, which may be off by rounding errors. */
function distribution(field: string, values: ArrayLike<number>, length: number): Float64Array {
  if (values.length !== length) {
    invalid(`the length of ${field} is ${values.length}, that of rewards ${length}`)
  }
  const p = Float64Array.from(values)
  p.forEach((x, i) => {
    if (!(x >= 0 && x <= 1 + 1e-6)) invalid(`${field}[${i}] is ${x}, expected a number in [0, 1]`)
  })
  const total = sum(p)
  if (!(Math.abs(total - 1) <= 1e-6)) invalid(`${field} sums to ${total}, expected 1 (within 1e-6)`)
  return p.map(x => x / total)
}
