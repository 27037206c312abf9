import { EventEmitter } from 'node:events'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { listenForStop } from '../../lib/cli/stop.js'

/** A process that notes how it was told to end. */
class Source extends EventEmitter {
  readonly codes: number[] = []
  exit(code: number) {
    this.codes.push(code)
  }
}

function listen(options: object = {}) {
  const source = new Source()
  let now = 5000
  let firsts = 0
  const stopping = listenForStop(() => firsts++, { source, clock: () => now, ...options })
  return {
    ...{ source, stopping, firsts: () => firsts },
    send(signal: string, time: number) {
      now = 5000 + time
      source.emit(signal, signal)
    },
  }
}

test('one Ctrl-C that arrives twice is one; another one quits', () => {
  const { source, stopping, firsts, send } = listen()
  assert.is(stopping.signal, undefined)
  send('SIGINT', 0)
  // tsx passes on what the terminal has sent to the whole group already.
  send('SIGINT', 30)
  send('SIGTERM', 999)
  assert.equal([firsts(), source.codes, stopping.signal, stopping.exitCode], [1, [], 'SIGINT', 130])
  send('SIGINT', 1000)
  assert.equal([firsts(), source.codes], [1, [130]])
  stopping.release()
  assert.equal(source.eventNames(), [])
})

test('what does not end after a moment is aborted, then left', async () => {
  const { source, stopping, send } = listen({ grace: 1, last: 1 })
  send('SIGTERM', 0)
  assert.not(stopping.abort.aborted)
  await new Promise(resolve => stopping.abort.addEventListener('abort', resolve))
  assert.is(stopping.abort.reason.code, 'ERR_RAPO_ABORTED')
  assert.is(stopping.abort.reason.message, 'stopped by SIGTERM')
  while (source.codes.length === 0) await new Promise(resolve => setTimeout(resolve, 1))
  assert.equal(source.codes, [143])
  stopping.release()

  // What ends in time is not.
  const inTime = listen({ grace: 0, last: 0 })
  inTime.send('SIGINT', 0)
  inTime.stopping.release()
  await new Promise(resolve => setTimeout(resolve, 5))
  assert.not(inTime.stopping.abort.aborted)
  assert.equal(inTime.source.codes, [])
})

test("a forked run is stopped by its parent, not by the terminal's Ctrl-C", () => {
  const { source, stopping, firsts, send } = listen({ isForked: true })
  send('SIGINT', 0)
  source.emit('message', 'other')
  assert.is(firsts(), 0)
  source.emit('message', 'stop')
  assert.is(stopping.exitCode, 143)
  source.emit('disconnect')
  assert.equal([firsts(), source.codes], [1, []])
  send('SIGTERM', 2000)
  assert.equal(source.codes, [130])
  stopping.release()
  assert.equal(source.eventNames(), [])
})

test.run()
