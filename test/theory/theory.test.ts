/** The closed forms against gradient ascent, against brute force, and against what docs/theory.md proves. */
import { execFile } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { createRandom } from '../../lib/base/random.js'
import {
  figure2,
  logLambertW,
  type TheoryObjective,
  type TheoryProblem,
  theoryDescent,
  theoryObjectives,
  theoryOptimum,
  theoryValue,
} from '../../lib/theory/theory.js'
import { cli } from '../helpers/cli.js'

const dir = mkdtempSync(path.join(tmpdir(), 'rapo-theory-'))
test.after(() => rmSync(dir, { recursive: true, force: true }))

/** What the issue and the paper ask for. */
const AGREEMENT = 1e-10
const distance = (a: Float64Array, b: Float64Array) =>
  a.reduce((x, y, i) => Math.max(x, Math.abs(y - b[i]!)), 0)
const sum = (values: ArrayLike<number>) => Array.from(values).reduce((x, y) => x + y, 0)
const [outside, inside] = [
  [0, 1, 2, 13, 14, 15],
  [3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
]

/** The closed form, after ascent found the same. */
function agreed(objective: TheoryObjective, problem: TheoryProblem, name = ''): Float64Array {
  const policy = theoryOptimum(objective, problem)
  const descent = theoryDescent(objective, problem)
  const off = distance(policy, descent.policy)
  assert.ok(off <= AGREEMENT, `${objective} ${name}: ascent is ${off} off\n${JSON.stringify(problem)}`)
  // Each of the probabilities is within a few roundings of λ's, which the slope of Σ π carries into the sum.
  assert.ok(
    Math.abs(sum(policy) - 1) <= 1e-14 * policy.length,
    `${objective} ${name}: sums to ${sum(policy)}`,
  )
  return policy
}

test('Figure 2: what has mass where the reference has none', () => {
  const [reverse, forward, entropy] = theoryObjectives.map(name => agreed(name, figure2))
  for (const i of inside) for (const policy of [reverse!, forward!, entropy!]) assert.ok(policy[i]! > 0)
  assert.ok(outside.every(i => figure2.reference[i] === 0 && reverse![i] === 0))
  assert.ok(outside.every(i => entropy![i]! > 0))
  assert.equal(
    outside.filter(i => forward![i]! > 0),
    [14],
  )
  // 1 − Σ αp/(1 − r), from the table that `rapo theory` prints.
  assert.ok(Math.abs(forward![14]! - 0.5763571428571429) <= AGREEMENT, String(forward![14]))
})

/** Mostly of ordinary size, with words that the reference rules out, equal rewards and small reference mass. */
function randomProblem(seed: number): TheoryProblem {
  const random = createRandom(seed)
  const n = 1 + random.below(20)
  const power = (most: number) => 10 ** (most * (2 * random.float() - 1))
  const scale = power(2)
  const isCoarse = random.below(3) === 0
  const rewards = Array.from({ length: n }, () => scale * (isCoarse ? random.below(3) / 2 : random.float()))
  const mass = Array.from({ length: n }, () => (random.below(3) === 0 ? 0 : 1e-3 + random.float() ** 3))
  if (sum(mass) === 0) mass[0] = 1
  const total = sum(mass)
  return { rewards, reference: mass.map(x => x / total), klCoef: power(1), entropyCoef: power(1) }
}

test('the closed forms and gradient ascent agree on random problems', () => {
  let boundary = 0
  for (let seed = 0; seed < 400; ++seed) {
    const problem = randomProblem(seed)
    for (const objective of theoryObjectives) {
      const policy = agreed(objective, problem, `seed ${seed}`)
      const isOutside = (x: number, i: number) => x > 0 && problem.reference[i] === 0
      if (objective === 'reverse-kl') assert.not(policy.some(isOutside))
      if (objective === 'forward-kl' && policy.some(isOutside)) boundary++
    }
  }
  assert.ok(boundary > 20 && boundary < 380, `${boundary} forward-KL maximisers leave the support`)
})

test('no point of a grid is better, and in one dimension the best is next to the maximiser', () => {
  for (let seed = 0; seed < 60; ++seed) {
    const random = createRandom(seed)
    const n = 2 + (seed % 2)
    const mass = Array.from({ length: n }, (_, i) => (i === seed % 3 ? 0 : 0.1 + random.float()))
    const problem = {
      rewards: mass.map(() => 2 * random.float()),
      reference: mass.map(x => x / sum(mass)),
      klCoef: 0.1 + random.float(),
      entropyCoef: 0.1 + random.float(),
    }
    for (const objective of theoryObjectives) {
      const policy = theoryOptimum(objective, problem)
      const best = theoryValue(objective, problem, policy)
      const steps = n === 2 ? 2000 : 40
      let [top, at] = [-Infinity, 0]
      for (let i = 0; i <= steps; ++i) {
        for (let j = n === 2 ? steps - i : 0; j <= steps - i; ++j) {
          const point = n === 2 ? [i, j] : [i, j, steps - i - j]
          const value = theoryValue(
            objective,
            problem,
            point.map(x => x / steps),
          )
          if (value > top) [top, at] = [value, i / steps]
        }
      }
      const name = `${objective} seed ${seed}`
      // Nothing but the roundings of three terms of a few units.
      assert.ok(top <= best + 1e-14, `${name}: a grid point has ${top}, the maximiser ${best}`)
      // A concave function of one variable falls on both sides of its maximum.
      if (n === 2) assert.ok(Math.abs(at - policy[0]!) <= 1 / steps, `${name}: grid ${at}, ${policy[0]}`)
    }
  }
})

test('forward KL leaves the support just where a reward outside it is above λ', () => {
  // With p = (1, 0) the root is λ = r₀ + α.
  const at = (klCoef: number, rewards: number[], reference = [1, 0]) =>
    Array.from(agreed('forward-kl', { rewards, reference, klCoef, entropyCoef: 1 }))
  assert.equal(at(2, [0, 1]), [1, 0])
  assert.equal(at(0.5, [0, 1]), [0.5, 0.5])
  assert.equal(at(0.25, [0, 1]), [0.25, 0.75])
  // The bound λ ≤ max r + α over the support: above it there is mass outside, whatever p.
  assert.ok(at(0.5, [0, 0.2, 0.71], [0.9, 0.1, 0])[2]! > 0)
  // Equal rewards outside share what is left; lower ones get nothing.
  assert.equal(at(0.5, [0, 1, 1, 0.99], [1, 0, 0, 0]), [0.5, 0.25, 0.25, 0])
  const exactly = { rewards: [0, 1], reference: [1, 0], klCoef: 1, entropyCoef: 1 }
  assert.equal(theoryOptimum('forward-kl', exactly), Float64Array.of(1, 0))
})

test('with entropy: stationary everywhere, and the exponential where p = 0', () => {
  for (let seed = 0; seed < 100; ++seed) {
    const problem = randomProblem(seed)
    const { rewards, reference, klCoef: alpha, entropyCoef: beta } = problem
    const policy = theoryOptimum('forward-kl-entropy', problem)
    const lambdas = Array.from(policy, (x, i) => [
      (alpha * reference[i]!) / x - beta * (Math.log(x) + 1) + rewards[i]!,
      // What double precision makes of it: roundings of the terms, of π inside them, and of the reward's own size.
      (alpha * reference[i]!) / x + beta * (1 + Math.abs(Math.log(x))) + Math.abs(rewards[i]!),
    ]).filter((_, i) => policy[i]! > 1e-300) as [number, number][]
    const [lambda] = lambdas[policy.indexOf(Math.max(...policy))] ?? lambdas[0]!
    const size = Math.max(...lambdas.map(([, size]) => size))
    for (const [value] of lambdas) {
      assert.ok(Math.abs(value - lambda) <= 64 * 2 ** -52 * size, `seed ${seed}: λ ${value} and ${lambda}`)
    }
    policy.forEach((x, i) => {
      if (reference[i] !== 0 || x < 1e-300) return
      const want = Math.exp((rewards[i]! - lambda) / beta - 1)
      const roundings = (64 * 2 ** -52 * size) / beta
      assert.ok(Math.abs(x / want - 1) <= roundings, `seed ${seed}: ${x}, want ${want}`)
    })
  }
})

test('W(e^y) solves w + log w = y, however large or small e^y', () => {
  assert.is(logLambertW(0), 0.5671432904097838) // the omega constant
  assert.is(logLambertW(1), 1)
  for (let y = -30; y < 1e6; y += Math.max(0.01, Math.abs(y) / 50)) {
    const w = logLambertW(y)
    const off = Math.abs(w + Math.log(w) - y)
    assert.ok(off <= 4 * 2 ** -52 * Math.max(1, Math.abs(y)), `y ${y}: ${w} is ${off} off`)
  }
  for (const y of [-700, -100, -36.5]) assert.is(logLambertW(y), Math.exp(y)) // W(x) = x − x² + …
})

test('the ends of the ranges of α and β', () => {
  const { rewards, reference } = figure2
  const at = (objective: TheoryObjective, klCoef: number, entropyCoef = 1) =>
    agreed(objective, { rewards, reference, klCoef, entropyCoef })
  const p = Float64Array.from(reference)
  const inSupport = rewards.map((r, i) => (reference[i]! > 0 ? r : -1))
  for (const tiny of [1e-6, 1e-3]) {
    // Reward alone: all on the best outcome that may have any.
    assert.ok(at('reverse-kl', tiny)[inSupport.indexOf(0.5)]! > 1 - 1e-9)
    assert.ok(at('forward-kl', tiny)[14]! > 1 - 20 * tiny)
    assert.ok(at('forward-kl-entropy', tiny, tiny)[14]! > 1 - 20 * tiny)
  }
  // The reference alone, to within max r/α.
  assert.ok(distance(at('reverse-kl', 1e6), p) <= 1e-6)
  assert.ok(distance(at('forward-kl', 1e6), p) <= 1e-6)
  assert.ok(distance(at('forward-kl-entropy', 1e6, 1e-6), p) <= 1e-6)
  // Entropy alone.
  assert.ok(distance(at('forward-kl-entropy', 1e-6, 1e6), new Float64Array(16).fill(1 / 16)) <= 1e-6)
  for (const objective of theoryObjectives) {
    const huge = { rewards: [1e6, -1e6, 0], reference: [0, 0.5, 0.5], klCoef: 1e-6, entropyCoef: 1e-6 }
    assert.ok(Math.abs(sum(theoryOptimum(objective, huge)) - 1) <= 1e-14)
  }
})

test('one outcome; equal rewards; a constant added to all rewards', () => {
  for (const objective of theoryObjectives) {
    assert.equal(
      agreed(objective, { rewards: [3], reference: [1], klCoef: 1, entropyCoef: 1 }),
      Float64Array.of(1),
    )
    const shifted = { ...figure2, rewards: figure2.rewards.map(r => r + 1024) }
    // The shifted rewards are rounded to 2⁻⁴³.
    assert.ok(distance(agreed(objective, shifted), theoryOptimum(objective, figure2)) <= 1e-11)
  }
  const equal = { ...figure2, rewards: figure2.rewards.map(() => 0.25) }
  const p = Float64Array.from(figure2.reference)
  assert.ok(distance(agreed('reverse-kl', equal), p) <= 1e-15)
  assert.ok(distance(agreed('forward-kl', equal), p) <= 1e-15)
  const entropy = agreed('forward-kl-entropy', equal)
  assert.ok(outside.every(i => entropy[i] === entropy[0] && entropy[i]! > 0 && entropy[i]! < 0.02))
})

test('values', () => {
  const problem = { rewards: [1, 2], reference: [0.5, 0.5], klCoef: 2, entropyCoef: 3 }
  const policy = [0.25, 0.75]
  const close = (got: number, want: number) => assert.ok(Math.abs(got - want) <= 1e-15 * 8, `${got}, ${want}`)
  const reverse = 0.25 * Math.log(0.5) + 0.75 * Math.log(1.5)
  const forward = 0.5 * Math.log(2) + 0.5 * Math.log(2 / 3)
  const entropy = -0.25 * Math.log(0.25) - 0.75 * Math.log(0.75)
  close(theoryValue('reverse-kl', problem, policy), 1.75 - 2 * reverse)
  close(theoryValue('forward-kl', problem, policy), 1.75 - 2 * forward)
  close(theoryValue('forward-kl-entropy', problem, policy), 1.75 - 2 * forward + 3 * entropy)
  assert.is(theoryValue('forward-kl', problem, [1, 0]), -Infinity)
  assert.is(theoryValue('reverse-kl', { ...problem, reference: [1, 0] }, policy), -Infinity)
  assert.ok(Number.isFinite(theoryValue('reverse-kl', problem, [1, 0])))
})

test('errors name field, value and range', () => {
  const throws = (changes: object, message: RegExp, objective = 'forward-kl-entropy') => {
    for (const solve of [theoryOptimum, theoryDescent]) {
      try {
        solve(objective as TheoryObjective, { ...figure2, ...changes })
      } catch (error) {
        assert.instance(error, RapoError, String(error))
        assert.is((error as RapoError).code, 'ERR_RAPO_INVALID_ARGUMENT')
        assert.match((error as RapoError).message, message)
        continue
      }
      assert.unreachable(`nothing was thrown; expected ${message}`)
    }
  }
  throws({ klCoef: 0 }, /klCoef is 0, expected a number in \[1e-6, 1e6\]/)
  throws({ klCoef: 2e6 }, /klCoef is 2000000, expected/)
  throws({ entropyCoef: Number.NaN }, /entropyCoef is NaN, expected a number in \[1e-6, 1e6\]/)
  throws({ rewards: [] }, /rewards is empty/)
  throws(
    { rewards: [...figure2.rewards.slice(1), Infinity] },
    /rewards\[15\] is Infinity, expected a number in/,
  )
  throws({ reference: [1] }, /the length of reference is 1, that of rewards 16/)
  throws({ reference: figure2.reference.map((p, i) => (i === 3 ? -0.1 : p)) }, /reference\[3\] is -0.1/)
  throws({ reference: figure2.reference.map(p => p / 2) }, /reference sums to 0.5, expected 1/)
  throws({}, /objective is kl, expected one of reverse-kl, forward-kl, forward-kl-entropy/, 'kl')
  assert.throws(
    () => theoryValue('forward-kl', figure2, [1]),
    /the length of policy is 1, that of rewards 16/,
  )
  assert.ok(theoryOptimum('forward-kl', { ...figure2, entropyCoef: Number.NaN }))
})

const rapo = (...args: string[]) => promisify(execFile)(cli[0], [cli[1], 'theory', ...args])

test('rapo theory prints the table and writes the figure of docs/theory.md', async () => {
  const file = path.join(dir, 'theory.svg')
  const { stdout } = await rapo('--output', file)
  assert.match(stdout, /^14 +1\.00 +0\.0000 +0\.000000 +0\.576357 +0\.261117$/m)
  assert.match(stdout, /^mass where p = 0 +0\.000000 +0\.576357 +0\.485213$/m)
  assert.ok(stdout.includes(file))
  const figure = readFileSync(file, 'utf8')
  assert.is(
    figure,
    readFileSync('docs/theory.svg', 'utf8'),
    'npx rapo theory --output docs/theory.svg renews it',
  )
  assert.is(figure.match(/class="bar"/g)!.length, 5 * 16)
  assert.is(figure.match(/class="dot"/g)!.length, 3 * 16)
})

test('rapo theory: errors come before anything is written', async () => {
  const file = path.join(dir, 'none.svg')
  const error = await rapo('--kl-coef', '0', '--output', file).catch(e => e)
  assert.is(error.code, 1)
  assert.is(error.stderr, 'rapo: klCoef is 0, expected a number in [1e-6, 1e6]\n')
  assert.not(existsSync(file))
})

test.run()
