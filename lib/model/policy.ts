/** The interface of a policy: what the training loop and the evaluation ask of a model. */
import type { CallOptions } from '../base/call.js'
import type { Objective, ObjectiveMetrics } from '../loss/objective.js'
import type { LossRows } from '../loss/rows.js'
import type { WorldHandle } from '../world/world.js'

export type { CallOptions }

/** What Device allows. */
export const devicePattern = /^(cpu|cuda(:\d{1,3})?)$/

export const deviceRange = 'cpu, cuda or cuda:1 and so on'

/** Of weights and activations. */
export type ModelDType = 'float32' | 'bfloat16'

/** Where a model lives: its weights, optimizer state, gradients and key/value cache. */
export type Device = 'cpu' | 'cuda' | `cuda:${number}`

/** AdamW (arXiv 1711.05101): weight decay apart from the gradient. Defaults 0.9, 0.999, 1e-8 and 0. */
export interface AdamW {
  readonly beta1: number
  readonly beta2: number
  readonly eps: number
  readonly weightDecay: number
}

/** How loadPolicy loads a model. Defaults: float32, on the CPU. */
export interface PolicyOptions {
  readonly dtype?: ModelDType
  readonly device?: Device
  /**
   * Whose operations compute: the CPU's own (cpu), or libtorch's (aten), which every other device takes. For tests of
   * those on the CPU. Default: the device's.
   */
  readonly backend?: 'cpu' | 'aten'
  /** false: inference only, no gradients or optimizer state are held. Default true. */
  readonly trainable?: boolean
  /** Directory of the frozen reference; none when absent. */
  readonly referenceDir?: string
  readonly adamw?: Partial<AdamW>
  /** The gradient's norm is clipped to this; > 0. Default 1. */
  readonly maxGradNorm?: number
  /** Rows of a chunk in the fused head; 0 (default) chooses. */
  readonly headRows?: number
  /**
   * Activation checkpointing: each layer keeps its input only and computes the rest again in the backward pass. The same
   * gradients from some thirtieth of the memory, for a forward pass more. Default false.
   */
  readonly recompute?: boolean
  /**
   * Bytes that the keys and values of generate may take on the CPU, unless a single sequence needs more or maxBatch is
   * given. Where running sequences would need more, the youngest are stopped and started again later. Default 2^30.
   */
  readonly cacheBytes?: number
  /**
   * The ranks that train this policy together (World.handle): each accumulates the gradient of its share of a batch, and
   * step adds the shares up. All ranks load the same weights and make the same calls of step. Default: none.
   */
  readonly world?: WorldHandle | undefined
}

/** What loadPolicy takes. */
export interface LoadOptions extends PolicyOptions, Pick<CallOptions, 'signal'> {}

/** How Policy.save writes a model. */
export interface SaveOptions {
  /**
   * Default: the policy's. Of a bfloat16 policy that trains, float32 writes the masters. bfloat16 makes a file half as
   * large of a float32 policy, but rounds away updates that are smaller than its steps (0.4 % of a weight).
   */
  readonly dtype?: ModelDType
  /** A larger model is written in shards with an index. Default 5e9. */
  readonly maxShardBytes?: number
}

/** Token sequences laid end to end: sequence b is tokenIds[offsets[b] .. offsets[b + 1]). */
export interface PackedTokens {
  readonly tokenIds: Int32Array
  /** (B + 1), ascending from 0. */
  readonly offsets: Int32Array
}

/** How completions are sampled from softmax(logits / temperature). */
export interface SamplingParams {
  /** Completions per prompt. */
  readonly n: number
  readonly maxNewTokens: number
  /** 0 is greedy. Default 1. */
  readonly temperature?: number
  /** Default 1: off. */
  readonly topP?: number
  /** Default 0: off. */
  readonly topK?: number
  /** Default 0: off. */
  readonly minP?: number
  readonly stopTokenIds: readonly number[]
  /**
   * Safe integer ≥ 0: same seed, same prompts, same bits. Or one for each prompt: its completions then do not depend on
   * the other prompts.
   */
  readonly seed: number | readonly number[]
  /**
   * With one seed: how many completions of that seed are sampled elsewhere before these, so that several processes that
   * share out the prompts of one call sample what one process would. Default 0.
   */
  readonly firstCompletion?: number
  /** Sequences decoded at once; 0 chooses. */
  readonly maxBatch?: number
}

/** stop: the last token is one of stopTokenIds; length: it was cut off. */
export type FinishReason = 'stop' | 'length'

/** In the order prompt 0 sample 0, prompt 0 sample 1, …; the stop token is part of the completion. */
export interface Completions {
  readonly tokens: PackedTokens
  /** One per token: log-prob under softmax(logits / temperature) before top-k/top-p/min-p (greedy: temperature 1). */
  readonly logprobs: Float32Array
  readonly finishReasons: readonly FinishReason[]
}

/** Whole sequences, and one row per trained token. packBatch and splitBatch make it. */
export interface MicroBatch extends LossRows {
  readonly sequences: PackedTokens
  /** (N) index into sequences.tokenIds of the token *before* the predicted one. */
  readonly rowPositions: Int32Array
  /** (N) the predicted token. */
  readonly tokenIds: Int32Array
}

/** (N) each, in nats: log p of the rows' tokens, and the entropy of their distributions. */
export interface LogprobRows {
  readonly logprobs: Float32Array
  readonly entropy: Float32Array
}

/** What an optimizer step did. */
export interface StepResult {
  /** Before clipping. */
  readonly gradNorm: number
  /** The norm was not finite: gradients dropped, weights untouched. */
  readonly skipped: boolean
}

/** Sizes of the model, from its config.json. */
export interface ModelInfo {
  readonly vocabSize: number
  readonly hiddenSize: number
  readonly layers: number
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly maxPositionEmbeddings: number
  readonly parameters: number
  readonly tiedEmbeddings: boolean
  readonly dtype: ModelDType
}

/**
 * A policy and its frozen reference. Calls run off the main thread, one at a time, in the order made; the arrays
 * that a call is given must not change before it settles. An abort stops generate between tokens, logprobs between
 * layers, accumulate before gradients begin to change.
 */
export interface Policy {
  readonly info: ModelInfo
  /** Samples sampling.n completions of each prompt. */
  generate(prompts: PackedTokens, sampling: SamplingParams, options?: CallOptions): Promise<Completions>
  /** Log-probs and entropies (N) of rows.tokenIds, each after its rows.rowPositions, under softmax(logits / temperature). */
  logprobs(
    sequences: PackedTokens,
    rows: { readonly rowPositions: Int32Array; readonly tokenIds: Int32Array },
    temperature: number,
    options?: CallOptions,
  ): Promise<LogprobRows>
  /** Adds the gradient of a micro-batch to what is held; the parts of a batch add up. Returns the metrics of the part. */
  accumulate(batch: MicroBatch, objective: Objective, options?: CallOptions): Promise<ObjectiveMetrics>
  /** Clips the gradient held, takes an AdamW step with learningRate ≥ 0, and drops the gradient. */
  step(learningRate: number): Promise<StepResult>
  /**
   * The reference's weights become share · policy + (1 − share) · reference, share in (0, 1]; both must have the same
   * tensors. Absent, as saveReference, from policies that cannot: model.refModelSyncSteps needs both.
   */
  syncReference?(share: number): Promise<void>
  /** Writes the reference into an existing directory, which as referenceDir gives the same bits. */
  saveReference?(dir: string): Promise<void>
  /** Drops the gradient held. */
  zeroGrad(): Promise<void>
  /** Writes config.json and model.safetensors, or its shards and their index, into an existing directory. */
  save(dir: string, options?: SaveOptions): Promise<void>
  /** Masters, moments and step count, as one safetensors file. */
  saveState(file: string): Promise<void>
  /** Reads what saveState wrote; throws where it is of another model. */
  loadState(file: string): Promise<void>
  /** Frees the native memory; later calls throw. Waits for a call in progress. */
  dispose(): Promise<void>
  /** As dispose. */
  [Symbol.asyncDispose](): Promise<void>
}

/**
 * Loads config.json and model.safetensors (or its shards) from a Hugging Face directory.
 * Errors name the file and the tensor or field.
 */
export type LoadPolicy = (dir: string, options?: LoadOptions) => Promise<Policy>
