/** The README's embedding example runs as it stands there. */
import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { policyLoss, rapo } from '../../lib/index.js'

const root = fileURLToPath(new URL('../..', import.meta.url))

test('the embedding example prints the loss and its gradient', async () => {
  const readme = readFileSync(path.join(root, 'README.md'), 'utf8')
  const example = /```ts\n(.*?)```/s.exec(readme)?.[1] ?? ''
  const entry = pathToFileURL(path.join(root, 'lib', 'index.ts')).href
  const code = example.replace("'rapo'", JSON.stringify(entry))
  assert.not(code === example, 'the example imports from rapo')
  const dir = mkdtempSync(path.join(tmpdir(), 'rapo-readme-'))
  try {
    const file = path.join(dir, 'example.mts')
    writeFileSync(file, code)
    const { stdout } = await promisify(execFile)(process.execPath, ['--import', 'tsx', file], { cwd: root })
    const { loss } = policyLoss(
      {
        vocabSize: 3,
        logits: Float32Array.of(1, 0, -1, 0.5, 0.5, 0),
        refLogits: Float32Array.of(1, 0, 0, 0, 1, 0),
        tokenIds: Int32Array.of(0, 2),
        tokenWeights: Float32Array.of(0.5, 0.5),
        advantages: Float32Array.of(0.7, -0.7),
        refWeights: Float32Array.of(1, 0.7),
      },
      rapo({ klCoef: 0.02, entropyCoef: 0.003 }),
    )
    assert.ok(stdout.startsWith(`${loss} `), stdout)
    assert.match(stdout, /Float32Array\(6\)/)
  } finally {
    rmSync(dir, { recursive: true })
  }
})

test.run()
