/**
 * The arrays with one entry per row: the inputs and the per-row results of a loss. native/kernels/row_arrays.h has the same two
 * lists. N is the number of rows.
 */

/** (N) each. */
export interface LossRows {
  /** In [0, V). */
  readonly tokenIds: Int32Array | BigInt64Array
  /**
   * n_t: 0 ignores the row; otherwise the token's share of the mean over the whole batch (tokenWeights). Of a row with 0,
   * nothing else is read.
   */
  readonly tokenWeights: Float32Array
  readonly advantages: Float32Array
  /** φ in [0, 1], for the forward penalties. 1 if left out. */
  readonly refWeights?: Float32Array
  /** log π_old(token). If left out, the policy's own log-probs, so that every ratio is 1. */
  readonly oldLogprobs?: Float32Array
  /** ≥ 0, factor of the policy term g (importanceWeights, topEntropyWeights). 1 if left out. */
  readonly policyWeights?: Float32Array
}

/** Results with one entry per row; 0 in masked rows. */
export interface PerToken {
  /** log p of the token. */
  readonly logprobs: Float32Array
  /** q of the token: the reference's log-prob after reweighting; 0 without a penalty. */
  readonly refLogprobs: Float32Array
  /** The penalty D. */
  readonly kl: Float32Array
  readonly entropy: Float32Array
  /** ρ; under `gspo` the sequence's ratio. */
  readonly ratio: Float32Array
  /** 0 not clipped, 1 cut off at the lower bound, 2 at the upper. */
  readonly clipped: Uint8Array
}

/** For each array of LossRows: the type of its entries, and whether the array may be left out. */
export const rowArrays = {
  tokenIds: { dtype: 'int32', required: true },
  tokenWeights: { dtype: 'float32', required: true },
  advantages: { dtype: 'float32', required: true },
  refWeights: { dtype: 'float32', required: false },
  oldLogprobs: { dtype: 'float32', required: false },
  policyWeights: { dtype: 'float32', required: false },
} as const satisfies Record<keyof LossRows, { dtype: 'int32' | 'float32'; required: boolean }>

/** The name and entry of each array of a list. */
export function entriesOf<K extends string, T>(list: Readonly<Record<K, T>>): [K, T][] {
  return Object.entries(list) as [K, T][]
}

/** The types of PerToken's entries. */
export const rowOutputs = {
  logprobs: 'float32',
  refLogprobs: 'float32',
  kl: 'float32',
  entropy: 'float32',
  ratio: 'float32',
  clipped: 'uint8',
} as const satisfies Record<keyof PerToken, string>

/** Applies f to each entry of a list; the results have the entries' names. */
export function mapRows<K extends string, T, R>(
  list: Record<K, T>,
  f: (name: K, type: T) => R,
): Record<K, R> {
  return Object.fromEntries(entriesOf<K, T>(list).map(([name, type]) => [name, f(name, type)])) as Record<
    K,
    R
  >
}
