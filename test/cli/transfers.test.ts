/** The bars of what a command waits for before its own work. */
import { Writable } from 'node:stream'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { createTransfers } from '../../lib/cli/transfers.js'

/** Transfers on a stream that is no terminal, and the lines that they have printed. */
function plain() {
  let text = ''
  let time = 0
  const stream = new Writable({
    write(chunk, _encoding, done) {
      text += chunk
      done()
    },
  })
  const transfers = createTransfers({ stream, clock: () => time, env: {} })
  return {
    ...transfers,
    wait: (seconds: number) => (time += 1000 * seconds),
    lines: () => text.split('\n').slice(0, -1),
  }
}

test('a model that is read shows megabytes, and its bar ends when all are there', () => {
  const { onProgress, wait, lines, log } = plain()
  onProgress(1e6, 988e6, 'loading')
  wait(3)
  onProgress(494e6, 988e6, 'loading')
  assert.ok(log('a notice'))
  wait(3)
  onProgress(988e6, 988e6, 'loading')
  onProgress(988e6, 988e6, 'loading')
  assert.not(log('nobody prints it'))
  const [first, half, notice, whole, ...more] = lines()
  assert.match(first!, /^loading 0\/988 MB \(0 %\)/)
  assert.match(half!, /^loading 494\/988 MB \(50 %\), elapsed 0:03, ETA 0:03/)
  assert.is(notice, 'a notice')
  assert.match(whole!, /^loading 988\/988 MB \(100 %\), elapsed 0:06/)
  assert.equal(more, [])
})

test('what is there at the first report has no bar; each name has its own', () => {
  const { onProgress, lines, stop } = plain()
  onProgress(5, 5, 'small')
  assert.equal(lines(), [])
  onProgress(0, 2e6, 'first')
  onProgress(0, 3e6, 'second')
  stop()
  assert.equal(
    lines().map(line => line.split(' ').slice(0, 3).join(' ')),
    ['first 0/2 MB', 'second 0/3 MB'],
  )
})

test.run()
