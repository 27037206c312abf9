/** A conversation of several turns, kept in the form that training takes. */
import { invalid } from '../base/errors.js'
import type { Completion, TrainSequence } from '../model/batch.js'

/**
 * A conversation: tokens that the model was given (context) and tokens that the model sampled, with their log-probs.
 * The mask and the log-probs grow together with the tokens, so that the three cannot disagree.
 *
 *     const episode = new Episode(tokenizer.encode('3 5 7=22:'))
 *     const completions = await policy.generate(packTokens([episode.tokenIds]), { n: 1, … })
 *     episode.addCompletion(unpackCompletions(completions)[0]!)
 *     episode.addContext(tokenizer.encode('Wrong. Try again:'))
 *     …
 *     const sequence = episode.toSequence({ advantage: 0.7 }) // for tokenWeights and splitBatch
 */
export class Episode {
  readonly #tokenIds: number[] = []
  readonly #mask: number[] = []
  readonly #logprobs: number[] = []
  #trained = 0

  /** @param promptIds the first context */
  constructor(promptIds: ArrayLike<number> = []) {
    this.addContext(promptIds)
  }

  /** All tokens so far: the prompt of the next call of generate. */
  get tokenIds(): readonly number[] {
    return this.#tokenIds
  }

  /** Number of tokens that the model sampled. */
  get trainedTokens(): number {
    return this.#trained
  }

  /** Appends tokens that the model did not sample, such as a prompt or the answer of a tool. They are not trained on. */
  addContext(tokenIds: ArrayLike<number>): void {
    for (let i = 0; i < tokenIds.length; i++) this.#add(tokenIds[i]!, 0, 0)
  }

  /**
   * Appends a completion with the log-probs that the sampler recorded. Throws ERR_RAPO_INVALID_ARGUMENT if the two differ
   * in length, or if the episode has no token before the completion: nothing would predict its first token.
   */
  addCompletion({ tokenIds, logprobs }: Pick<Completion, 'tokenIds' | 'logprobs'>): void {
    if (logprobs.length !== tokenIds.length) {
      invalid(`logprobs has ${logprobs.length} elements, expected ${tokenIds.length}, one per token`)
    }
    if (this.#tokenIds.length === 0) invalid('an episode must have context before its first completion')
    for (let i = 0; i < tokenIds.length; i++) this.#add(tokenIds[i]!, 1, logprobs[i]!)
    this.#trained += tokenIds.length
  }

  /** A copy of the episode as a sequence to train on. */
  toSequence(rest: Pick<TrainSequence, 'advantage' | 'refWeight' | 'weight'>): TrainSequence {
    return {
      tokenIds: this.#tokenIds.slice(),
      completionMask: this.#mask.slice(),
      oldLogprobs: this.#logprobs.slice(),
      ...rest,
    }
  }

  #add(tokenId: number, mask: number, logprob: number): void {
    this.#tokenIds.push(tokenId)
    this.#mask.push(mask)
    this.#logprobs.push(logprob)
  }
}
