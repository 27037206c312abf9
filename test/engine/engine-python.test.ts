/**
 * What save() writes is loaded by transformers: names, values, dtype, greedy completions. Needs a python3 with torch
 * and transformers (RAPO_TEST_PYTHON names another); without one it is skipped. The other direction is always tested:
 * the golden models were written by transformers.
 */
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { loadPolicy } from '../../lib/model/engine.js'
import type { ModelDType } from '../../lib/model/policy.js'
import { newDir, newModel, pack, readSafetensors, sampling, unpack } from '../helpers/engine-util.js'

const python = process.env.RAPO_TEST_PYTHON || 'python3'
const script = `
import hashlib, json, sys
import torch
from transformers import AutoModelForCausalLM
prompts, new = json.loads(sys.argv[1]), int(sys.argv[2])
for directory in sys.argv[3:]:
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    tensors = {}
    for name, p in model.named_parameters():
        raw = p.detach().contiguous().view(torch.uint8).numpy().tobytes()
        tensors[name] = [str(p.dtype).replace("torch.", ""), list(p.shape), hashlib.sha256(raw).hexdigest()]
    greedy = []
    for prompt in prompts:
        out = model.generate(torch.tensor([prompt]), max_new_tokens=new, do_sample=False, eos_token_id=0, pad_token_id=0)
        greedy.append(out[0, len(prompt):].tolist())
    problems = [sorted(info["missing_keys"]), sorted(info["unexpected_keys"])]
    print(json.dumps({"tensors": tensors, "greedy": greedy, "problems": problems}))
`

const probe = spawnSync(python, ['-c', 'import torch, transformers'], { encoding: 'utf8' })
if (probe.status !== 0) {
  console.log(
    `SKIPPED engine-python: ${python} has no torch and transformers (RAPO_TEST_PYTHON may name one that has)`,
  )
  test.skip('saved models load in transformers', () => {})
} else {
  const prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11]]
  const newTokens = 20
  const cases: { name: string; dtype: ModelDType; dir: string; completions: number[][] }[] = []
  for (const dtype of ['float32', 'bfloat16'] as const) {
    for (const tied of [true, false]) {
      const policy = await loadPolicy(await newModel({ tie_word_embeddings: tied }), {
        dtype,
        trainable: false,
      })
      const dir = newDir()
      await policy.save(dir)
      const greedy = { ...sampling, temperature: 0, maxNewTokens: newTokens }
      const { tokens } = await policy.generate(pack(prompts), greedy)
      await policy.dispose()
      cases.push({ name: `${dtype}, ${tied ? 'tied' : 'untied'}`, dtype, dir, completions: unpack(tokens) })
    }
  }
  const dirs = cases.map(({ dir }) => dir)
  const run = spawnSync(python, ['-c', script, JSON.stringify(prompts), String(newTokens), ...dirs], {
    encoding: 'utf8',
  })
  const results = run.stdout.split('\n').filter(line => line.startsWith('{'))
  cases.forEach(({ name, dtype, dir, completions }, i) => {
    test(`transformers loads what save() wrote: ${name}`, () => {
      assert.is(run.status, 0, run.stderr)
      const result = JSON.parse(results[i]!)
      assert.equal(result.problems, [[], []])
      const stored = [...readSafetensors(path.join(dir, 'model.safetensors'))].map(
        ([key, { shape, bytes }]) => [key, [dtype, shape, createHash('sha256').update(bytes).digest('hex')]],
      )
      assert.equal(result.tensors, Object.fromEntries(stored))
      // bfloat16 rounds differently in the two programs, and near ties then go either way.
      if (dtype === 'float32') assert.equal(completions, result.greedy)
    })
  })
}

test.run()
