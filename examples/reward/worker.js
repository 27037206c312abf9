/** Runs a completion as a program and judges what it is worth. A thread bounds its time, not its rights: run programs
 * that could mean harm in a container instead. */
import { runInNewContext } from 'node:vm'
import { parentPort } from 'node:worker_threads'

parentPort.on('message', ({ program, answer }) => parentPort.postMessage(judge(program, answer)))
parentPort.postMessage('ready')

function judge(program, { numbers, target }) {
  let value
  try {
    value = runInNewContext(program, Object.create(null), { contextCodeGeneration: { strings: false } })
  } catch (error) {
    return { reward: 0, reason: String(error.message).split('\n')[0] }
  }
  const used = (program.match(/\d+/g) ?? []).map(Number)
  const isFair = String(used.sort()) === String([...numbers].sort())
  return value === target && isFair
    ? { reward: 1, reason: 'correct' }
    : { reward: 0, reason: `is ${String(value).slice(0, 40)}` }
}
