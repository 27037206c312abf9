import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { packBatch, tokenWeights, toSequence } from '../../lib/model/batch.js'
import { Episode } from '../../lib/rollout/episode.js'
import { errorOf } from '../helpers/kernels-check.js'

const completion = (tokenIds: number[], logprobs: number[]) => ({
  tokenIds: Int32Array.from(tokenIds),
  logprobs: Float32Array.from(logprobs),
})

test('two turns by hand: context is masked, log-probs stay with their tokens', () => {
  const episode = new Episode([5, 6])
  assert.equal(episode.tokenIds, [5, 6])
  episode.addCompletion(completion([7, 2], [-1, -2]))
  episode.addContext(Int32Array.of(8, 9))
  episode.addCompletion(completion([3], [-0.5]))
  assert.equal(episode.tokenIds, [5, 6, 7, 2, 8, 9, 3])
  assert.is(episode.trainedTokens, 3)
  const sequence = episode.toSequence({ advantage: 0.7, refWeight: 0.8, weight: 2 })
  assert.equal(sequence, {
    tokenIds: [5, 6, 7, 2, 8, 9, 3],
    completionMask: [0, 0, 1, 1, 0, 0, 1],
    oldLogprobs: [0, 0, -1, -2, 0, 0, -0.5],
    advantage: 0.7,
    refWeight: 0.8,
    weight: 2,
  })
  const batch = packBatch([sequence], tokenWeights([sequence], 'sequence-mean', 0))
  assert.equal(batch.tokenIds, Int32Array.of(7, 2, 3))
  assert.equal(batch.rowPositions, Int32Array.of(1, 2, 5))
  assert.equal(batch.oldLogprobs, Float32Array.of(-1, -2, -0.5))
})

test('one turn is toSequence', () => {
  const episode = new Episode([5])
  episode.addCompletion(completion([7, 2], [-1, -2]))
  const rest = { advantage: -1, refWeight: 0.5 }
  assert.equal(
    episode.toSequence(rest),
    toSequence([5], [7, 2], { ...rest, oldLogprobs: Float32Array.of(-1, -2) }),
  )
})

test('a sequence does not change when the episode goes on', () => {
  const episode = new Episode([5])
  episode.addCompletion(completion([7], [-1]))
  const before = episode.toSequence({ advantage: 1 })
  episode.addContext([8])
  assert.equal(before.tokenIds, [5, 7])
  assert.equal(before.completionMask, [0, 1])
  assert.equal(before.oldLogprobs, [0, -1])
})

test('what does not fit throws and changes nothing', () => {
  const episode = new Episode([5])
  const lengths = errorOf(() => episode.addCompletion(completion([7, 2], [-1])))
  assert.is(lengths.code, 'ERR_RAPO_INVALID_ARGUMENT')
  assert.match(lengths.message, 'logprobs has 1 elements, expected 2')
  assert.equal(episode.tokenIds, [5])
  assert.is(episode.trainedTokens, 0)
  const first = errorOf(() => new Episode().addCompletion(completion([7], [-1])))
  assert.is(first.code, 'ERR_RAPO_INVALID_ARGUMENT')
  assert.match(first.message, 'must have context before its first completion')
})

test.run()
