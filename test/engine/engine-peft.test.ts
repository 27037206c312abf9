/**
 * What saveAdapter() writes is loaded by PEFT and gives the same logits. Needs a python3 with torch, transformers and peft
 * (RAPO_TEST_PYTHON names another); without one it is skipped. The other direction is always tested: test/golden/lora-* were
 * written by PEFT.
 */
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { saveLogits } from '../../lib/model/engine.js'
import {
  loadPolicy,
  maxDifference,
  newDir,
  newModel,
  objective,
  pack,
  prompts,
  readSafetensors,
  sampling,
  trainingBatch,
} from '../helpers/engine-util.js'

const python = process.env.RAPO_TEST_PYTHON || 'python3'
const script = `
import json, sys
import torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    ids = torch.tensor([json.loads(sys.argv[2])])
    logits = [model(input_ids=ids).logits[0].flatten().tolist()]
    with model.disable_adapter():
        logits.append(model(input_ids=ids).logits[0].flatten().tolist())
print(json.dumps(logits))
`

const probe = spawnSync(python, ['-c', 'import torch, transformers, peft'], { encoding: 'utf8' })
if (probe.status !== 0) {
  console.log(
    `SKIPPED engine-peft: ${python} has no torch, transformers and peft (RAPO_TEST_PYTHON may name one that has)`,
  )
  test.skip('saved adapters load in PEFT', () => {})
} else {
  test('saved adapters load in PEFT', async () => {
    const model = await newModel()
    for (const lora of [
      { r: 4, loraAlpha: 16 },
      { r: 3, loraAlpha: 6, useRslora: true, targetModules: ['v_proj', 'down_proj'] },
    ]) {
      const policy = await loadPolicy(model, { lora, referenceDir: model })
      const completions = await policy.generate(prompts, { ...sampling, n: 2 })
      await policy.accumulate(trainingBatch(prompts, completions, 2), objective)
      await policy.step(0.05)
      const dir = newDir()
      await policy.saveAdapter!(dir)
      const ids = [5, 6, 7, 8, 9]
      const file = path.join(newDir(), 'logits')
      await saveLogits(
        policy,
        pack([ids]),
        Int32Array.from(ids, (_, i) => i),
        file,
      )
      await policy.dispose()
      const { values } = readSafetensors(file).get('logits')!
      const run = spawnSync(python, ['-c', script, dir, JSON.stringify(ids)], { encoding: 'utf8' })
      assert.is(run.status, 0, run.stderr)
      const [adapted, plain] = JSON.parse(run.stdout)
      // Some hundred roundings of float32 numbers of size 10.
      assert.ok(maxDifference(adapted, values) < 1e-4)
      assert.ok(maxDifference(plain, values) > 1e-2)
    }
  })
}

test.run()
