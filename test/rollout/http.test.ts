/** Requests to servers whose kept connections end. */
import { createServer, type Socket } from 'node:net'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { connect, NoAnswer } from '../../lib/rollout/servers/http.js'

/** A server that answers the first request of each connection, and ends the connection in place of a second answer. */
async function startForgetful() {
  const sockets: Socket[] = []
  const server = createServer(socket => {
    const number = sockets.push(socket)
    let requests = 0
    socket.on('error', () => {})
    socket.on('data', () => {
      requests += 1
      const body = `${number}`
      if (requests > 1) socket.resetAndDestroy()
      else socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${body}`)
    })
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const close = () => {
    for (const socket of sockets) socket.destroy()
    server.close()
  }
  return { url: `http://127.0.0.1:${(server.address() as { port: number }).port}`, close }
}

const patience = { timeoutSeconds: 600 }

test('a question on a kept connection that has ended is asked again on a new one; what changes the server is not', async () => {
  const { url, close } = await startForgetful()
  const connection = connect(url)
  try {
    assert.is((await connection.request('/health', patience)).text, '1')
    assert.is((await connection.request('/health', patience)).text, '2')
    const posted = await connection.request('/pause', { ...patience, body: {} }).catch(error => error)
    assert.instance(posted, NoAnswer)
    assert.is(posted.isStale, true)
    assert.is((await connection.request('/pause', { ...patience, body: {} })).text, '3')
  } finally {
    connection.close()
    close()
  }
})

test('a new connection that breaks off is an error at once', async () => {
  let connections = 0
  const server = createServer(socket => {
    connections += 1
    socket.on('error', () => {})
    socket.on('data', () => socket.resetAndDestroy())
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  const connection = connect(`http://127.0.0.1:${port}`)
  try {
    const error = await connection.request('/health', patience).catch(error => error)
    assert.instance(error, NoAnswer)
    assert.is(connections, 1)
  } finally {
    connection.close()
    server.close()
  }
})

test.run()
