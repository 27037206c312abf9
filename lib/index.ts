/** What `import 'rapo'` gives: everything that needs no libtorch. The engine is loaded by the first loadPolicy. */

export { RapoError, type RapoErrorCode } from './base/errors.js'
export { passAtK } from './base/stats.js'
export type { Config } from './config/config.js'
export { loadConfig, parseConfig } from './config/load.js'
export { type Problem, readProblems } from './data/problems.js'
export { evaluate } from './eval/evaluate.js'
export type { EvalResult } from './eval/groups.js'
export {
  type AdvantageOptions,
  groupAdvantages,
  type PhiRange,
  referenceWeights,
} from './loss/advantage.js'
export {
  type Correction,
  type ImportanceWeights,
  importanceWeights,
  offPolicyMask,
  type SampledRows,
} from './loss/correction.js'
export * from './loss/cuda.js'
export { adaptEntropyCoef, type EntropyControl, topEntropyWeights } from './loss/entropy.js'
export * from './loss/kernels.js'
export type { ObjectiveMetrics } from './loss/objective.js'
export * from './loss/objective.js'
export {
  type Aggregation,
  packBatch,
  packTokens,
  splitBatch,
  type TrainSequence,
  tokenWeights,
  toSequence,
} from './model/batch.js'
export type * from './model/engine.js'
export type * from './model/policy.js'
export { loadTokenizer, readStopTokenIds, type Tokenizer } from './model/tokenizer.js'
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
} from './theory/theory.js'
export type { StepMetrics } from './train/metrics.js'
export type { Hook } from './train/observe/observe.js'
export { type TrainOptions, train } from './train/train.js'

import type { LoadPolicy } from './model/policy.js'

/** Loads a model with the engine: see Policy. Throws ERR_RAPO_SETUP, with the fix, where the engine is not built. */
export const loadPolicy: LoadPolicy = async (dir, options) => {
  const engine = await import('./model/engine.js')
  return engine.loadPolicy(dir, options)
}
