import { spawn } from 'node:child_process'
import { test } from 'uvu'
import * as assert from 'uvu/assert'

/** What a process says that reads its standard input, which `give` gets. A process that waits for ever is killed. */
async function reading(after: string, give: (stdin: NodeJS.WritableStream) => void): Promise<string> {
  const script = `
    import { readStandardInput } from './lib/base/jsonl.ts'
    const stop = new AbortController()
    const reading = readStandardInput(stop.signal)
    ${after}
    reading.then(content => console.log('read ' + content), error => console.log('failed: ' + error.message))`
  const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
    timeout: 120_000,
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  let said = ''
  child.stdout.on('data', data => (said += data))
  give(child.stdin)
  await new Promise(resolve => child.on('close', resolve))
  return said
}

test('standard input is read to its end, and an abort ends the wait for it', async () => {
  const read = await reading('', stdin => {
    stdin.write('{"a":')
    stdin.end('1}\n')
  })
  assert.is(read, 'read {"a":1}\n\n')
  assert.is(await reading("stop.abort(new Error('stopped'))", () => {}), 'failed: stopped\n')
})

test.run()
