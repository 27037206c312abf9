/// <reference lib="esnext.disposable" preserve="true" />
/** What `import 'rapo/kernels'` gives: the objective on this machine's processor or GPU, for a trainer of your own. */

// Loaded when a function is first called: scripts/build.mjs sees to it.
import * as advantages from './loss/advantage.js'
import * as entropies from './loss/entropy.js'

export { RapoError, type RapoErrorCode } from './base/errors.js'
export type {
  AdvantageBaseline,
  AdvantageOptions,
  AdvantageScale,
  MultiObjectiveAggregation,
  PhiRange,
  WeightedRewards,
} from './loss/advantage.js'
export {
  type Correction,
  type ImportanceWeights,
  importanceWeights,
  offPolicyMask,
  type SampledRows,
} from './loss/correction.js'
export {
  DeviceArray,
  type DeviceDType,
  type DeviceGatherBatch,
  type DeviceHeadBatch,
  type DeviceLossBatch,
  type DeviceLossOptions,
  type DeviceLossResult,
  type DevicePerToken,
  type DeviceRows,
  type DLTensor,
  deviceMemory,
  type FusedHeadOptions,
  fusedHeadLossOnDevice,
  fusedHeadLossOnDeviceAsync,
  fusedHeadWorkspace,
  gatherLogprobsOnDevice,
  type HostArray,
  policyLossOnDevice,
  policyLossOnDeviceAsync,
  type StreamOptions,
} from './loss/cuda.js'
export type { EntropyControl } from './loss/entropy.js'
export {
  type AsyncOptions,
  type CudaDevice,
  type CudaInfo,
  type CudaPlace,
  type DeviceOptions,
  deviceNumber,
  entropy,
  entropyAsync,
  type GatherBatch,
  type GatherResult,
  type GradMode,
  gatherLogprobs,
  gatherLogprobsAsync,
  type KernelDevice,
  type KernelsInfo,
  kernelsInfo,
  type LogitRows,
  type Logits,
  type LogitsDType,
  type LossBatch,
  type LossOptions,
  type LossResult,
  type LossRows,
  logSumExp,
  logSumExpAsync,
  type PerToken,
  policyLoss,
  policyLossAsync,
  setKernelThreads,
} from './loss/kernels.js'
export {
  addMetrics,
  cispo,
  dapo,
  defineObjective,
  describeObjective,
  drGrpo,
  emptyMetrics,
  grpo,
  gspo,
  type MeanMetrics,
  meanMetrics,
  type Objective,
  type ObjectiveMetrics,
  type Penalty,
  penalties,
  rapo,
  rapoPhi,
  type Surrogate,
  sapo,
  surrogates,
  validateObjective,
} from './loss/objective.js'

export const groupAdvantages: typeof advantages.groupAdvantages = (...args) =>
  advantages.groupAdvantages(...args)
export const multiObjectiveAdvantages: typeof advantages.multiObjectiveAdvantages = (...args) =>
  advantages.multiObjectiveAdvantages(...args)
export const referenceWeights: typeof advantages.referenceWeights = (...args) =>
  advantages.referenceWeights(...args)
export const perRow: typeof advantages.perRow = (...args) => advantages.perRow(...args)
export const zeroAdvantageFraction: typeof advantages.zeroAdvantageFraction = (...args) =>
  advantages.zeroAdvantageFraction(...args)
export const adaptEntropyCoef: typeof entropies.adaptEntropyCoef = (...args) =>
  entropies.adaptEntropyCoef(...args)
export const topEntropyWeights: typeof entropies.topEntropyWeights = (...args) =>
  entropies.topEntropyWeights(...args)
