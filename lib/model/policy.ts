/** The interface of a policy: the calls that training and evaluation make. */
import type { CallOptions } from '../base/call.js'
import type { Objective, ObjectiveMetrics } from '../loss/objective.js'
import type { LossRows } from '../loss/rows.js'
import type { WorldHandle } from '../world/world.js'

export type { CallOptions }

/** The texts that Device allows. */
export const devicePattern = /^(cpu|cuda(:\d{1,3})?)$/

export const deviceRange = 'cpu, cuda or cuda:1 and so on'

/** The number formats that weights and activations can have. */
export const modelDTypes = ['float32', 'bfloat16'] as const

/** Number format of weights and activations. */
export type ModelDType = (typeof modelDTypes)[number]

/** Where a model lives: its weights, optimizer state, gradients and key/value cache. */
export type Device = 'cpu' | 'cuda' | `cuda:${number}`

/** AdamW (arXiv 1711.05101): weight decay apart from the gradient. Defaults 0.9, 0.999, 1e-8 and 0. */
export interface AdamW {
  readonly beta1: number
  readonly beta2: number
  readonly eps: number
  readonly weightDecay: number
}

/**
 * A new adapter: y = W x + s B (A x) for the matrices named, with A (r × columns) uniform in ±1 / √columns and B
 * (rows × r) = 0, as PEFT begins. Names and defaults are PEFT's, but for targetModules.
 */
export interface LoraOptions {
  /** The rank r; at least 1. */
  readonly r: number
  /** s is loraAlpha / r. Default 8. */
  readonly loraAlpha?: number
  /** Among q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj; all-linear (default) is all of them. */
  readonly targetModules?: 'all-linear' | readonly string[]
  /** s is loraAlpha / √r (arXiv 2312.03732). Default false. */
  readonly useRslora?: boolean
  /** Of A's numbers; a safe integer ≥ 0. Default 0. */
  readonly seed?: number
}

/** How loadPolicy loads a model. Defaults: float32, on the CPU. */
export interface PolicyOptions {
  readonly dtype?: ModelDType
  readonly device?: Device
  /**
   * Which operations compute: rapo's own for the CPU (cpu), or libtorch's (aten), which other devices use. Tests choose aten
   * on the CPU. Default: those of the device.
   */
  readonly backend?: 'cpu' | 'aten'
  /** false: inference only, without gradients and optimizer state. Default true. */
  readonly trainable?: boolean
  /**
   * Directory of the frozen reference. Absent: no reference. With an adapter, the policy's own directory means the model
   * without the adapter, which takes no memory of its own.
   */
  readonly referenceDir?: string
  /** Trains a new adapter of low rank (LoRA); the model itself stays as it is. */
  readonly lora?: LoraOptions
  /** Directory of an adapter of PEFT's for this model (adapter_config.json, adapter_model.safetensors). Not with lora. */
  readonly adapterDir?: string
  /**
   * true: generate samples from W + s B A, made by the first call after each step, at the speed of the model without an
   * adapter, and at the price of one more copy of those matrices during generation. In a bfloat16 policy they are rounded
   * stochastically. false: from W and the adapter. Default true.
   */
  readonly mergeAdapter?: boolean
  /** Directory of an adapter that the reference has and keeps. Needs the policy's own directory as referenceDir. */
  readonly referenceAdapterDir?: string
  readonly adamw?: Partial<AdamW>
  /**
   * Number format of AdamW's two moments. bfloat16 halves them; they are rounded stochastically after each step. Not with
   * shard. Default float32.
   */
  readonly stateDtype?: ModelDType
  /** Of stochastic rounding, with the number of the step and of the element; a safe integer ≥ 0. Default 0. */
  readonly seed?: number
  /** The gradient's norm is clipped to this; > 0. Default 1. */
  readonly maxGradNorm?: number
  /** Rows per chunk of the fused head; 0 (default) lets the engine choose. */
  readonly headRows?: number
  /**
   * Activation checkpointing: each layer keeps only its input and computes the rest again in the backward pass. The
   * gradients are the same; activations take about a thirtieth of the memory, at the price of a second forward pass. Default
   * false.
   */
  readonly recompute?: boolean
  /**
   * Limit in bytes for the keys and values of generate on the CPU; a single sequence may exceed it, and maxBatch replaces it.
   * If the running sequences would need more, the youngest are stopped and started again later. Default 2^30.
   */
  readonly cacheBytes?: number
  /**
   * The ranks that train this policy together (World.handle). Each rank accumulates the gradient of its share of a batch, and
   * step adds up the gradients of all ranks. All ranks load the same weights and make the same calls of step. Default: none.
   */
  readonly world?: WorldHandle | undefined
  /**
   * What the ranks of `world` share out. optimizer: each holds and updates its part of the float32 weights and moments
   * (ZeRO-1). gradients: of the gradients, too (ZeRO-2); accumulate is then a call of all ranks. Not with an adapter.
   * Default none.
   */
  readonly shard?: Shard
}

export const shards = ['none', 'optimizer', 'gradients'] as const
export type Shard = (typeof shards)[number]

/** What loadPolicy takes. onProgress is told how many parameters have been read, those of a reference and of masters included. */
export interface LoadOptions extends PolicyOptions, CallOptions {}

/** How Policy.save writes a model. */
export interface SaveOptions {
  /**
   * Default: the policy's dtype. For a trainable bfloat16 policy, float32 writes the optimizer's float32 copies of the weights.
   * For a float32 policy, bfloat16 halves the file, but loses updates below its resolution (0.4 % of a weight).
   */
  readonly dtype?: ModelDType
  /** A model with more bytes is written as shards with an index. Default 5e9. */
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
   * Safe integer ≥ 0: the same seed and prompts give the same bits. Or one seed per prompt: the completions of a prompt then
   * do not depend on the other prompts.
   */
  readonly seed: number | readonly number[]
  /**
   * With one seed: the number of completions of that seed that other calls sample before these. Several processes that share
   * the prompts of one call then sample what one process would. Default 0.
   */
  readonly firstCompletion?: number
  /** Number of sequences decoded at once; 0 (default) lets the engine choose. */
  readonly maxBatch?: number
  /** One for each prompt, from 1 to maxNewTokens. Whoever samples may ignore them, and sample up to maxNewTokens. */
  readonly maxNewTokensPerPrompt?: readonly number[]
  /**
   * Of conversations: the number of the turn, from 1. The keys and values of its completions are kept for the next call, the
   * next turn, whose prompts begin with the prompts and completions of this call and are computed from there on only. They
   * are dropped by a call that is no next turn, by accumulate and by step. Whoever samples may ignore this.
   */
  readonly turn?: number
}

/** stop: the last token is one of stopTokenIds. length: the completion was cut off at maxNewTokens. */
export type FinishReason = 'stop' | 'length'

/** Completions in the order prompt 0 sample 0, prompt 0 sample 1, … A stop token is part of its completion. */
export interface Completions {
  readonly tokens: PackedTokens
  /** One per token: log-prob under softmax(logits / temperature) before top-k/top-p/min-p (greedy: temperature 1). */
  readonly logprobs: Float32Array
  readonly finishReasons: readonly FinishReason[]
  /** With SamplingParams.turn: tokens of the prompts that were not computed, since the last turn had kept them. */
  readonly cachedTokens?: number
}

/** Whole sequences with one row per trained token, as packBatch and splitBatch make them. */
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

/** The result of an optimizer step. */
export interface StepResult {
  /** Norm of the gradient before clipping. */
  readonly gradNorm: number
  /** True if the norm was not finite: the gradient was dropped and the weights stayed as they were. */
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
  /** Parameters of the adapter; absent without one. `parameters` does not count them. */
  readonly adapterParameters?: number
}

/** A tensor of a model as save writes it. */
export interface TensorInfo {
  readonly name: string
  readonly shape: readonly number[]
}

/** Options of Policy.openGroup. */
export interface GroupOptions {
  /** nccl needs a policy on a GPU; gloo goes between CPUs. */
  readonly backend: 'nccl' | 'gloo'
  /** The file of NCCL. Default: the libnccl.so.2 that libtorch has loaded, or that the system finds. */
  readonly library?: string | undefined
  /**
   * The group's name, where the other ranks find this one as SGLang's workers do, in a store of torch's on this host. Absent: by
   * NCCL's id alone, as vLLM's workers do.
   */
  readonly name?: string
  /** gloo: of this host, as the other ranks reach it. */
  readonly address?: string
  readonly timeoutSeconds: number
}

/** A call of a BroadcastGroup: how long it may take in all, and what ends it before. */
export interface GroupCall extends CallOptions {
  readonly timeoutSeconds: number
}

/**
 * The policy as rank 0 of a group whose other ranks are workers of inference servers. A call that is aborted, or that takes
 * too long (ERR_RAPO_DISTRIBUTED, which says what was being done), leaves the group useless: close it, and open another.
 */
export interface BroadcastGroup {
  /** nccl: the 128 bytes with which the other ranks find this one. */
  readonly id: Uint8Array
  /** With a name: where the store listens, on all interfaces of this host. */
  readonly port: number
  /** Waits until ranks 1 to size − 1 have joined. Policies' other calls go on meanwhile. */
  join(size: number, call: GroupCall): Promise<void>
  /**
   * Broadcasts `count` of the policy's tensors, from number `first` on, in their order, with the numbers that save writes in the
   * policy's dtype. packedBytes > 0: as bytes, end to end, each broadcast ending with the tensor with which it has more than
   * packedBytes. 0: each tensor by itself. onProgress is told bytes.
   */
  broadcast(
    part: { readonly first: number; readonly count: number; readonly packedBytes: number },
    call: GroupCall,
  ): Promise<void>
  /** Never waits. */
  close(): void
}

/**
 * A policy and its frozen reference. Calls run off the main thread, one at a time, in the order made. The arrays given to a
 * call must not change before the call settles. An abort stops generate between tokens and logprobs between layers; it stops
 * accumulate only before the gradient begins to change.
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
  /**
   * Adds the gradient of a micro-batch to the policy's gradient: the parts of a batch add up. Returns the part's metrics. With
   * shard gradients all ranks must call it equally often, a rank without sequences with an empty batch, packBatch([], []); an
   * abort is then ignored.
   */
  accumulate(batch: MicroBatch, objective: Objective, options?: CallOptions): Promise<ObjectiveMetrics>
  /** Clips the gradient, takes an AdamW step with learningRate ≥ 0, and drops the gradient. */
  step(learningRate: number): Promise<StepResult>
  /**
   * The reference's weights become share · policy + (1 − share) · reference, share in (0, 1]; both must have the same
   * tensors. Absent, as saveReference, from policies that cannot: model.refModelSyncSteps needs both.
   */
  syncReference?(share: number): Promise<void>
  /** Writes the reference into an existing directory, which as referenceDir gives the same bits. */
  saveReference?(dir: string): Promise<void>
  /** Drops the gradient. */
  zeroGrad(): Promise<void>
  /**
   * Writes config.json and model.safetensors, or its shards and their index, into an existing directory. An adapter is
   * merged into the weights.
   */
  save(dir: string, options?: SaveOptions): Promise<void>
  /** The tensors that save writes, in its order. Absent, as openGroup, from policies that cannot broadcast them. */
  readonly tensors?: readonly TensorInfo[]
  /**
   * Opens a group in which this process is rank 0 and the workers of inference servers are the other ranks, to broadcast the
   * policy's weights to them.
   */
  openGroup?(options: GroupOptions): Promise<BroadcastGroup>
  /**
   * Writes the adapter into an existing directory as PEFT does: adapter_config.json, which names the model that it
   * changes (default: the directory that the policy was loaded from), and adapter_model.safetensors in float32. Absent
   * from policies that cannot; throws for a policy without an adapter.
   */
  saveAdapter?(dir: string, options?: { readonly baseModel?: string }): Promise<void>
  /**
   * Writes the float32 weights, the moments and the step count as one safetensors file: of the adapter alone, if any. With
   * shard, every rank must call it with the same new file, into which each writes its part: the file is whole when all calls
   * have ended.
   */
  saveState(file: string): Promise<void>
  /**
   * Reads a file that saveState wrote, in any number of ranks and with any shard. onProgress is told how many of its numbers
   * have been read. Throws if the file belongs to another model.
   */
  loadState(file: string, options?: Pick<CallOptions, 'onProgress'>): Promise<void>
  /** Waits for a call in progress and frees the native memory. Later calls throw. */
  dispose(): Promise<void>
  /** Like dispose. */
  [Symbol.asyncDispose](): Promise<void>
}

/**
 * Loads config.json and model.safetensors (or its shards) from a Hugging Face directory.
 * Errors name the file and the tensor or field.
 */
export type LoadPolicy = (dir: string, options?: LoadOptions) => Promise<Policy>
