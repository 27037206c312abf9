/** What `import 'rapo'` gives: everything that needs no libtorch. The engine is loaded by the first loadPolicy. */
export {
  type AdvantageOptions,
  groupAdvantages,
  type PhiRange,
  referenceWeights,
} from './advantage.js'
export {
  type Aggregation,
  packBatch,
  packTokens,
  splitBatch,
  type TrainSequence,
  tokenWeights,
  toSequence,
} from './batch.js'
export { type Config, loadConfig, parseConfig } from './config.js'
export {
  type Correction,
  type ImportanceWeights,
  importanceWeights,
  offPolicyMask,
  type SampledRows,
} from './correction.js'
export { type Problem, readProblems } from './data.js'
export * from './device.js'
export { adaptEntropyCoef, type EntropyControl, topEntropyWeights } from './entropy.js'
export { RapoError, type RapoErrorCode } from './errors.js'
export { type EvalResult, evaluate, passAtK } from './evaluate.js'
export * from './kernels.js'
export type { ObjectiveMetrics, StepMetrics } from './metrics.js'
export * from './objective.js'
export type { Hook } from './observe/observe.js'
export type * from './policy.js'
export { loadTokenizer, readStopTokenIds, type Tokenizer } from './prompt.js'
export { type CountdownAnswer, verifyCountdown } from './reward/countdown.js'
export { compareAnswers, verifyMath } from './reward/math.js'
export type { Verdict, Verifier } from './reward/verifier.js'
export {
  figure2,
  type TheoryDescent,
  type TheoryObjective,
  type TheoryProblem,
  theoryDescent,
  theoryObjectives,
  theoryOptimum,
  theoryValue,
} from './theory.js'
export { type TrainOptions, train } from './train.js'

import type { LoadPolicy } from './policy.js'

/** Loads a model with the engine: see Policy. Throws ERR_RAPO_SETUP, with the fix, where the engine is not built. */
export const loadPolicy: LoadPolicy = async (dir, options) => {
  const engine = await import('./policy.js')
  return engine.loadPolicy(dir, options)
}
