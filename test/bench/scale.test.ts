/** The model of a step's time in docs/scale.md: its table is what bench/scale.ts computes, and the formulas are those of the page. */
import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { exchangeSeconds, generateSeconds, modelStep, scaleTable, trainFlop } from '../../bench/scale.js'

const page = readFileSync(new URL('../../docs/scale.md', import.meta.url), 'utf8')
/** Qwen2.5-7B, and its parameters without the embeddings. */
const [P, products] = [7.6156e9, 7.6156e9 - 152_064 * 3584]
const near = (actual: number, expected: number) =>
  assert.ok(Math.abs(actual / expected - 1) < 1e-12, `${actual}, expected ${expected}`)

test('the page has the table', () => {
  for (const line of scaleTable()) assert.ok(page.includes(`${line}\n`), line)
  for (const name of ['dealt', 'inOrder'] as const) {
    const [a, b, c] = [8, 64, 1024].map(ranks => modelStep(ranks)[0]![name].toFixed(2))
    assert.match(page.replaceAll(/\s+/g, ' '), `${a}, ${b} and ${c}`)
  }
})

test('training and sampling by the formulas', () => {
  near(trainFlop(1000), 10 * products * 1000 + 11 * 3584 * 28 * 1e6)
  // Token by token: a completion of 3 tokens beside one of 5, after 200 tokens of a prompt each.
  const token = (running: number, context: number) =>
    (2 * P + running * context * 57_344) / (0.6 * 3.35e12) + 0.002
  const each = [0, 1, 2, 3, 4].map(t => token(t < 3 ? 2 : 1, 200 + t + 0.5))
  near(
    generateSeconds([5, 3]),
    each.reduce((sum, seconds) => sum + seconds, 0),
  )
})

test('exchanges by the formulas', () => {
  const once = (ranks: number, bytes: number, speed: number, machines: number) =>
    (((ranks - 1) / ranks) * bytes * P) / speed + (P / 2 ** 24) * machines * 15e-6
  near(exchangeSeconds(8, 'none', 10, 3), 2 * once(8, 4, 350e9, 1))
  near(exchangeSeconds(64, 'optimizer', 10, 3), 2 * once(64, 4, 40e9, 8) + once(64, 2, 40e9, 8))
  near(exchangeSeconds(8, 'gradients', 10, 3), once(8, 2, 350e9, 1))
  near(exchangeSeconds(64, 'gradients', 1, 3), 3 * once(64, 4, 40e9, 8) - 0.4 + once(64, 2, 40e9, 8))
})

test.run()
