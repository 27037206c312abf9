import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { didYouMean, nearest } from '../../lib/base/nearest.js'

test('case, dashes and underscores decide nothing; what is not near is no suggestion', () => {
  const known = ['rapo', 'grpo', 'dr-grpo', 'gspo']
  assert.is(nearest('drGrpo', known), 'dr-grpo')
  assert.is(nearest('DR_GRPO', known), 'dr-grpo')
  assert.is(nearest('RAPO', known), 'rapo')
  assert.is(nearest('gsbo', known), 'gspo')
  assert.is(nearest('ppo', []), undefined)
  assert.is(nearest('reinforce', known), undefined)
  assert.is(nearest('lr', ['r', 'eps', 'learningRate']), undefined)
  assert.is(didYouMean('drGrpo', known), ': did you mean "dr-grpo"?')
  assert.is(didYouMean('reinforce', known), '')
})

test('a part of the names is compared, the rest decides between equals', () => {
  const known = ['objective.klCoef', 'sampling.topK', 'objective.topK']
  const ownName = (name: string) => name.split('.').at(-1)!
  assert.is(nearest('objective.top_k', known, ownName), 'objective.topK')
  assert.is(nearest('samplin.top-k', known, ownName), 'sampling.topK')
})

test.run()
