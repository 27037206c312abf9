/** Runs a completion as a program and judges what it is worth. A thread bounds its time, not its rights: run programs
 * that could mean harm in a container instead. */
import { runInNewContext } from 'node:vm'
import { parentPort } from 'node:worker_threads'

parentPort.on('message', ({ program, answer }) => parentPort.postMessage(judge(program, answer)))
parentPort.postMessage('ready')

// Of promises that a program made: they are not its value.
process.on('unhandledRejection', () => {})

function judge(program, { numbers, target }) {
  try {
    const value = runInNewContext(program, Object.create(null), { contextCodeGeneration: { strings: false } })
    const used = (program.match(/\d+/g) ?? []).map(Number)
    const isFair = String(used.sort()) === String([...numbers].sort())
    return value === target && isFair
      ? { reward: 1, reason: 'correct' }
      : { reward: 0, reason: `is ${String(value).slice(0, 40)}` }
  } catch (error) {
    return { reward: 0, reason: describe(error) }
  }
}

/** A program may throw anything, and even to make a text of it may throw. */
function describe(error) {
  try {
    return String(error?.message ?? error).split('\n')[0]
  } catch {
    return 'throws'
  }
}
