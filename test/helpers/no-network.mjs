// Preloaded by hostile.test.ts: an access to the network ends the process with status 97 and a message.
import dgram from 'node:dgram'
import dns from 'node:dns'
import net from 'node:net'

const refuse = what => () => {
  process.stderr.write(`network: ${what}\n`)
  process.exit(97)
}
const connect = net.Socket.prototype.connect
net.Socket.prototype.connect = function (...given) {
  const options = Array.isArray(given[0]) ? given[0][0] : given[0]
  // A local socket, such as tsx's, has a path and is allowed.
  if (typeof options === 'object' && options?.path) return connect.apply(this, given)
  return refuse('connect')()
}
net.Server.prototype.listen = refuse('listen')
dgram.createSocket = refuse('dgram')
for (const name of ['lookup', 'resolve', 'resolve4', 'resolve6']) dns[name] = refuse(`dns.${name}`)
for (const name of ['lookup', 'resolve', 'resolve4', 'resolve6']) dns.promises[name] = refuse(`dns.${name}`)
globalThis.fetch = refuse('fetch')
