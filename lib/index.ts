/// <reference lib="esnext.disposable" preserve="true" />
/** What `import 'rapo'` gives: every part of the loop. Importing it leaves nothing in the process. */

// Modules with large dependencies, or with effects on the process. scripts/build.mjs loads them when a function is first called.
import { whole } from './base/wait.js'
import type { Config } from './config/config.js'
import * as configs from './config/load.js'
import type { Problem } from './data/problems.js'
import type { EncodeContext, EncodedPrompt } from './data/prompts.js'
import * as prompts from './data/prompts.js'
import type { EvaluateOptions } from './eval/evaluate.js'
import * as evaluations from './eval/evaluate.js'
import type { EvalResult } from './eval/groups.js'
import type { MemoryPrediction, RunShape } from './model/engine.js'
import * as engine from './model/engine.js'
import type { LoadPolicy, PolicyOptions } from './model/policy.js'
import type { PromptTemplate, TemplateOptions } from './model/template.js'
import * as templates from './model/template.js'
import type { Tokenizer } from './model/tokenizer.js'
import * as tokenizers from './model/tokenizer.js'
import type { NamedEnvironment } from './reward/environment.js'
import * as environments from './reward/environments.js'
import * as verifiers from './reward/load.js'
import type { MathOptions } from './reward/math.js'
import type { RewardOptions, RewardPart } from './reward/rewards.js'
import * as rewards from './reward/rewards.js'
import type { Verifier } from './reward/verifier.js'
import type { TrainOptions } from './train/train.js'
import * as training from './train/train.js'
import type { World, WorldOptions } from './world/world.js'
import * as worlds from './world/world.js'

export { RapoError, type RapoErrorCode } from './base/errors.js'
export { passAtK } from './base/stats.js'
export type { Config } from './config/config.js'
export { type Cursor, type CursorState, createCursor } from './data/cursor.js'
export type { DataOptions } from './data/fields.js'
export { type Problem, readProblems } from './data/problems.js'
export type { EncodeContext, EncodedPrompt } from './data/prompts.js'
export type { EvaluateOptions } from './eval/evaluate.js'
export type { EvalResult } from './eval/groups.js'
export {
  type AdvantageBaseline,
  type AdvantageOptions,
  type AdvantageScale,
  groupAdvantages,
  type MultiObjectiveAggregation,
  multiObjectiveAdvantages,
  type PhiRange,
  perRow,
  referenceWeights,
  type WeightedRewards,
  zeroAdvantageFraction,
} from './loss/advantage.js'
export {
  type Correction,
  type ImportanceWeights,
  importanceWeights,
  type Mismatch,
  mismatch,
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
export { adaptEntropyCoef, type EntropyControl, topEntropyWeights } from './loss/entropy.js'
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
export {
  type Aggregation,
  type Completion,
  packBatch,
  packTokens,
  splitBatch,
  splitEvenly,
  type TrainSequence,
  tokenWeights,
  toSequence,
  unpackCompletions,
} from './model/batch.js'
export type { MemoryPrediction, RunShape } from './model/engine.js'
export type {
  AdamW,
  BroadcastGroup,
  CallOptions,
  Completions,
  Device,
  FinishReason,
  GroupCall,
  GroupOptions,
  LoadOptions,
  LoadPolicy,
  LogprobRows,
  LoraOptions,
  MicroBatch,
  ModelDType,
  ModelInfo,
  PackedTokens,
  Policy,
  PolicyOptions,
  SamplingParams,
  SaveOptions,
  StepResult,
  TensorInfo,
} from './model/policy.js'
export type { Message, PromptTemplate, TemplateOptions } from './model/template.js'
export type { Tokenizer } from './model/tokenizer.js'
export { type CountdownAnswer, verifyCountdown } from './reward/countdown.js'
export type {
  Environment,
  EnvironmentResult,
  EpisodeEnd,
  NamedEnvironment,
  Observation,
  TurnContext,
} from './reward/environment.js'
export { type Format, verifyFormat } from './reward/format.js'
export { lengthReward, overlongPunishment } from './reward/length.js'
export {
  type CompareOptions,
  type Comparison,
  compareAnswers,
  type Extraction,
  extractAnswer,
  type MathOptions,
  type Tolerance,
  verifyMath,
} from './reward/math.js'
export type { RewardOptions, RewardPart } from './reward/rewards.js'
export type {
  Patience,
  Turn,
  Verdict,
  Verifier,
  VerifierResult,
  Verify,
  VerifyContext,
} from './reward/verifier.js'
export {
  localEngine,
  type RolloutEngine,
  type SampledCompletions,
  type Sampler,
} from './rollout/engine.js'
export { Episode } from './rollout/episode.js'
export {
  type EpisodeOptions,
  type RolloutContext,
  rolloutEpisodes,
  sampleRollouts,
} from './rollout/episodes.js'
export {
  type Rollout,
  rolloutGroups,
  rolloutSequence,
  type ScoredRollout,
  type ScoreOptions,
  sampledTokens,
  samplingParams,
  score,
  scoreParts,
} from './rollout/rollout.js'
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
export type { StepEvaluation } from './train/evaluation.js'
export { type Filtered, type PhaseSeconds, type StepMetrics, summarizeStep } from './train/metrics.js'
export type { Hook } from './train/observe/observe.js'
export type { OpenOptions } from './train/open.js'
export type { SampleLine } from './train/samples.js'
export { learningRateAt, type Schedule } from './train/schedule.js'
export type { TrainOptions } from './train/train.js'
export { PeerError } from './world/peer-error.js'
export type { Place } from './world/place.js'
export type { World, WorldHandle, WorldOptions } from './world/world.js'

/**
 * The configuration of a YAML or JSON file with overrides on top: values by dotted path ('objective.klCoef'), as text
 * (from a command line) or as they are. Throws ERR_RAPO_CONFIG, which lists everything that is wrong: field, value, range,
 * and the file and line of a value that comes from a file.
 */
export function loadConfig(
  file: string | undefined,
  overrides: Readonly<Record<string, unknown>> = {},
): Config {
  return configs.loadConfig(file, overrides)
}

/**
 * Like loadConfig, but from an object. Throws ERR_RAPO_CONFIG.
 * @param where returns the text before a field's path in a message, such as the file and line of the value
 */
export function parseConfig(values: unknown, where?: (path: string) => string): Config {
  return configs.parseConfig(values, where)
}

/** Loads tokenizer.json of a model directory. Throws ERR_RAPO_FORMAT if the file is missing or broken. */
export function loadTokenizer(modelDir: string): Tokenizer {
  return tokenizers.loadTokenizer(modelDir)
}

/**
 * The ids of the tokens that end a completion: eos_token_id of generation_config.json, else of config.json, else the
 * tokenizer's eos_token. Empty if none is declared.
 */
export function readStopTokenIds(modelDir: string): number[] {
  return tokenizers.readStopTokenIds(modelDir)
}

/**
 * The text around a prompt, as `data.template` of a configuration names it: a style's name, `chat` (the model's own chat
 * template, with the prompt as the user's message), or a text in which {prompt} stands for the prompt. Throws
 * ERR_RAPO_FORMAT if the model's chat template is missing or does not work.
 */
export function createTemplate(
  template: string,
  modelDir: string,
  options: TemplateOptions = {},
): PromptTemplate {
  return templates.createTemplate(template, modelDir, options)
}

/**
 * The ids of the tokens that end a completion: those of readStopTokenIds and those of the template. Throws ERR_RAPO_FORMAT if
 * the tokenizer lacks one of the template's special tokens, or if there is no token that ends a completion.
 */
export function stopTokenIdsFor(modelDir: string, tokenizer: Tokenizer, template: PromptTemplate): number[] {
  return templates.stopTokenIdsFor(modelDir, tokenizer, template)
}

/**
 * A problem's prompt in the template, as token ids. Throws ERR_RAPO_DATA, which names the problem, if the prompt leaves no
 * room for maxNewTokens in the model's context.
 */
export function encodePrompt(problem: Problem, context: EncodeContext): EncodedPrompt {
  return prompts.encodePrompt(problem, context)
}

/**
 * A built-in verifier by its name (`math`, `countdown`, `exact`), the default export of a module by its path, or a named export
 * as `PATH#NAME`. The options are for `math` only. Throws ERR_RAPO_CONFIG.
 */
export async function loadVerifier(name: string, options: MathOptions = {}): Promise<Verifier> {
  return verifiers.loadVerifier(name, options)
}

/**
 * The rewards of the configuration's section `task`: the verifier first, then the reward functions, then `overlong` if
 * overlongBufferLen is given. Throws ERR_RAPO_CONFIG for an unknown name, for two rewards with the same name, and for too few or
 * too many weights.
 */
export async function loadRewards(options: RewardOptions): Promise<RewardPart[]> {
  return rewards.loadRewards(options)
}

/** Loads a model with the engine: see Policy. Throws ERR_RAPO_SETUP, which says what to do, if the engine is not built. */
export const loadPolicy: LoadPolicy = async (dir, options) => engine.loadPolicy(dir, options)

/** Predicts the memory of loadPolicy(dir, options) and its use from config.json alone; no weights are read. */
export async function predictMemory(
  dir: string,
  options: PolicyOptions,
  shape: RunShape,
): Promise<MemoryPrediction> {
  return engine.predictMemory(dir, options, shape)
}

/**
 * Writes random weights as model.safetensors beside the config.json in `dir`. Matrices are normal with the config's
 * initializer_range, norms are 1, biases 0. The same seed gives the same bits on the same machine.
 */
export async function initializeModel(dir: string, seed: number): Promise<void> {
  return engine.initializeModel(dir, seed)
}

/** Sets the number of threads that the engine uses in this process from its next call on; 0 restores the default. */
export function setEngineThreads(threads: number): void {
  engine.setEngineThreads(threads)
}

/** Whether the libtorch that the engine was compiled against has CUDA. */
export function libtorchHasCuda(): boolean {
  return engine.libtorchHasCuda()
}

/** The version of libtorch that the engine was compiled against. */
export function libtorchVersion(): string {
  return engine.libtorchVersion()
}

/**
 * A built-in environment by its name, or the default export of a module by its path, or `PATH#NAME` for a named export.
 * undefined stays undefined. Throws ERR_RAPO_CONFIG.
 */
export async function loadEnvironment(name: string | undefined): Promise<NamedEnvironment | undefined> {
  return environments.loadEnvironment(name)
}

/** Trains in config.run.output until config.run.steps. Returns the number of steps done. Throws RapoError. */
export async function train(config: Config, options: TrainOptions = {}): Promise<number> {
  return whole('train', training.train(config, options))
}

/**
 * Samples config.eval.samples completions of each problem in config.data.eval and writes eval.json and eval-samples.jsonl. A
 * problem's samples depend on the seed, its id and config.eval.samplesPerCall, not on the other problems. Finished samples
 * are kept in eval-progress.jsonl: the same call after a kill continues from them, to the same result. Only one evaluation
 * at a time may write to an output directory. Throws RapoError.
 */
export async function evaluate(config: Config, options: EvaluateOptions): Promise<EvalResult> {
  return whole('evaluate', evaluations.evaluate(config, options))
}

/**
 * Waits until all processes that a launcher (torchrun, srun or mpirun) started have come, and connects them over torch's
 * c10d (docs/scale.md). Without a launcher the world has one rank. Throws ERR_RAPO_CONFIG where the launcher's variables do
 * not fit together, ERR_RAPO_DISTRIBUTED that names the ranks that did not come, ERR_RAPO_UNSUPPORTED where libtorch has
 * no c10d.
 */
export async function openWorld(options: WorldOptions): Promise<World> {
  return worlds.openWorld(options)
}
