/**
 * The arrays with an entry a row: what a loss takes and what it returns for each. native/kernels/row_arrays.h has the
 * same two lists. N is the number of rows.
 */

/** (N) each. */
export interface LossRows {
  /** In [0, V). */
  readonly tokenIds: Int32Array | BigInt64Array
  /** n_t, mask × aggregation weight over the whole batch. 0 masks the row: nothing else in it is looked at. */
  readonly tokenWeights: Float32Array
  readonly advantages: Float32Array
  /** φ in [0, 1], for the forward penalties. Left out: 1. */
  readonly refWeights?: Float32Array
  /** log π_old(token). Left out: the policy's own, so that every ratio is 1. */
  readonly oldLogprobs?: Float32Array
  /** ≥ 0, what the policy term g is multiplied with (importanceWeights, topEntropyWeights). Left out: 1. */
  readonly policyWeights?: Float32Array
}

/** An entry a row; 0 in masked rows. */
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

/** Of LossRows: the type of the entries, and whether the array may be left out. */
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

/** f of each entry of a list, under its name. */
export function mapRows<K extends string, T, R>(
  list: Record<K, T>,
  f: (name: K, type: T) => R,
): Record<K, R> {
  return Object.fromEntries(entriesOf<K, T>(list).map(([name, type]) => [name, f(name, type)])) as Record<
    K,
    R
  >
}
