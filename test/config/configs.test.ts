import { readdirSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { loadConfig } from '../../lib/config/load.js'
import { promptStyles } from '../../lib/model/template.js'
import { verifierNames } from '../../lib/reward/load.js'

const dir = fileURLToPath(new URL('../../configs', import.meta.url))
const files = readdirSync(dir).filter(name => name.endsWith('.yaml'))
const load = (name: string) => loadConfig(path.join(dir, name))

for (const name of files) {
  test(`${name} is valid`, () => {
    const config = load(name)
    assert.ok(verifierNames.includes(config.task.verifier))
    assert.ok(config.data.train && config.data.eval)
  })
}

test('a pair differs in its objective alone', () => {
  const pairs = files.filter(name => name.endsWith('-rapo.yaml'))
  assert.ok(pairs.length >= 6)
  for (const name of pairs) {
    const [{ objective: a, ...rapo }, { objective: b, ...grpo }] = [
      load(name),
      load(name.replace('-rapo', '-grpo')),
    ]
    assert.equal(rapo, grpo, name)
    assert.equal([a.preset, a.penalty.startsWith('forward')], ['rapo', true], name)
    assert.equal([b.preset, b.penalty.startsWith('reverse')], ['grpo', true], name)
  }
})

test("the paper's setting: SimpleRL's recipe, its prompt to the letter", () => {
  for (const name of files.filter(file => file.startsWith('simplerl-'))) {
    const { data, sampling, optimizer, objective, eval: evaluation } = load(name)
    assert.is(
      promptStyles[data.template as keyof typeof promptStyles]?.text,
      '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{prompt}\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n',
    )
    assert.equal([sampling.promptsPerStep, sampling.groupSize, sampling.temperature], [1024, 8, 1])
    assert.equal([optimizer.learningRate, optimizer.schedule, optimizer.maxGradNorm], [5e-7, 'constant', 1])
    assert.equal(
      [objective.klCoef, objective.entropyCoef, objective.clipLow, objective.clipHigh],
      [1e-4, 1e-3, 0.2, 0.2],
    )
    assert.is(objective.advantageScale, 'sample-std')
    assert.is(evaluation.samples, 2048)
  }
})

test.run()
