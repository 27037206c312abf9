/** The typed face of the engine addon. Contract only for now: load() is the engine's to write. */
import type { ObjectiveMetrics } from './metrics.js'
import type { Objective } from './objective.js'

export type ModelDType = 'float32' | 'bfloat16'
export type Device = 'cpu' | 'cuda'

export interface AdamW {
  readonly beta1: number
  readonly beta2: number
  readonly eps: number
  readonly weightDecay: number
}

export interface PolicyOptions {
  readonly dtype?: ModelDType
  readonly device?: Device
  /** false: inference only, no gradients or optimizer state are held. Default true. */
  readonly trainable?: boolean
  /** Directory of the frozen reference; none when absent. */
  readonly referenceDir?: string
  readonly adamw?: Partial<AdamW>
  /** The gradient's norm is clipped to this; > 0. Default 1. */
  readonly maxGradNorm?: number
  /** Rows of a chunk in the fused head; 0 (default) chooses. */
  readonly headRows?: number
}

/** Token sequences laid end to end: sequence b is tokenIds[offsets[b] .. offsets[b + 1]). */
export interface PackedTokens {
  readonly tokenIds: Int32Array
  /** (B + 1), ascending from 0. */
  readonly offsets: Int32Array
}

export interface SamplingParams {
  /** Completions per prompt. */
  readonly n: number
  readonly maxNewTokens: number
  /** 0 is greedy. */
  readonly temperature: number
  readonly topP: number
  /** 0 is off. */
  readonly topK: number
  readonly minP: number
  readonly stopTokenIds: readonly number[]
  /** Safe integer ≥ 0. Same seed, same prompts, same bits. */
  readonly seed: number
  /** Sequences decoded at once; 0 chooses. */
  readonly maxBatch?: number
}

export type FinishReason = 'stop' | 'length'

/** In the order prompt 0 sample 0, prompt 0 sample 1, …; the stop token is part of the completion. */
export interface Completions {
  readonly tokens: PackedTokens
  /** One per token: log-prob under softmax(logits / temperature) before top-k/top-p/min-p (greedy: temperature 1). */
  readonly logprobs: Float32Array
  readonly finishReasons: readonly FinishReason[]
}

/** Whole sequences, and one row per trained token. Built by batch.ts alone, which settles the shift by one. */
export interface MicroBatch {
  readonly sequences: PackedTokens
  /** (N) index into sequences.tokenIds of the token *before* the predicted one. */
  readonly rowPositions: Int32Array
  /** (N) the predicted token. */
  readonly tokenIds: Int32Array
  /** (N) mask × aggregation weight, over the whole batch; the rest one entry a row too. */
  readonly tokenWeights: Float32Array
  readonly advantages: Float32Array
  /** Absent: 1. */
  readonly refWeights?: Float32Array
  /** Absent: ratio 1. */
  readonly oldLogprobs?: Float32Array
}

export interface LogprobRows {
  readonly logprobs: Float32Array
  readonly entropy: Float32Array
}

export interface StepResult {
  /** Before clipping. */
  readonly gradNorm: number
  /** The norm was not finite: gradients dropped, weights untouched. */
  readonly skipped: boolean
}

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

export interface CallOptions {
  readonly signal?: AbortSignal
  /** Called on the main thread a few times a second while the call runs. */
  readonly onProgress?: (done: number, total: number) => void
}

/** A Qwen2 policy and its frozen reference. Calls run off the main thread, one at a time, in the order made. */
export interface Policy {
  readonly info: ModelInfo
  generate(prompts: PackedTokens, sampling: SamplingParams, options?: CallOptions): Promise<Completions>
  logprobs(
    sequences: PackedTokens,
    rows: { readonly rowPositions: Int32Array; readonly tokenIds: Int32Array },
    temperature: number,
    options?: CallOptions,
  ): Promise<LogprobRows>
  accumulate(batch: MicroBatch, objective: Objective, options?: CallOptions): Promise<ObjectiveMetrics>
  step(learningRate: number): Promise<StepResult>
  zeroGrad(): Promise<void>
  /** Writes config.json and model.safetensors into an existing directory. */
  save(dir: string): Promise<void>
  /** Masters, moments and step count, as one safetensors file. */
  saveState(file: string): Promise<void>
  loadState(file: string): Promise<void>
  /** Frees the native memory; later calls throw. Waits for a call in progress. */
  dispose(): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

export type LoadPolicy = (dir: string, options?: PolicyOptions) => Promise<Policy>
