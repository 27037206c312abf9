/** What a run left, for tests that compare runs. */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { readLatestCheckpoint } from '../../lib/train/checkpoint.js'

/** A run's lines, without the seconds, which are never the same. */
export function readLines(run: string, name: string): Record<string, unknown>[] {
  const text = readFileSync(path.join(run, name), 'utf8')
  return text
    .trim()
    .split('\n')
    .map(line => {
      const { seconds: _, ...rest } = JSON.parse(line)
      return rest
    })
}

/** All that must be the same bits in two runs that did the same. */
export function fingerprint(run: string) {
  const checkpoint = readLatestCheckpoint(run)!
  const read = (file: string) => readFileSync(path.join(checkpoint.dir, file), 'utf8')
  return {
    metrics: readLines(run, 'metrics.jsonl'),
    samples: readLines(run, 'samples.jsonl'),
    weights: read('weights.json'),
    state: read('rapo/state.safetensors'),
    trainer: read('rapo/trainer.json'),
  }
}
