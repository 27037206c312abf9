/** The workers of a fake server that take weights by broadcasts, and what they make of them: a model directory. */
import { type ChildProcess, spawn } from 'node:child_process'
import { copyFileSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { readSafetensors, writeSafetensors } from './engine-util.js'
import { type FakeRank, joinFakeNccl } from './fake-nccl.js'
import { makeTempDir } from './fake-policy.js'
import type { Faults } from './fake-servers.js'
import { receiverScript, torchPython } from './torch-receiver.js'

export type ReceiverKind = 'vllm' | 'sglang'

/** What servers are told of a group: the fields of vLLM and of SGLang together. */
export interface Joining {
  readonly nccl_unique_id_b64: string
  readonly packed: boolean
  readonly packed_buffer_size_bytes: number
  readonly rank_offset: number
  readonly world_size: number
  readonly master_address: string
  readonly master_port: number
  readonly group_name: string
  readonly backend: 'nccl' | 'gloo'
}

/** Tensors that are about to come. */
export interface Announced {
  readonly names: readonly string[]
  readonly dtype_names?: readonly string[]
  readonly dtypes?: readonly string[]
  readonly shapes: readonly (readonly number[])[]
}

/** One worker. */
interface Worker {
  /** The bytes of each of these broadcasts. */
  receive(dtypes: readonly string[], shapes: readonly (readonly number[])[]): Promise<Buffer[]>
  leave(): void
}

const widths: Record<string, number> = { float32: 4, bfloat16: 2 }
const storedNames: Record<string, string> = { float32: 'F32', bfloat16: 'BF16' }

export function createReceiver(kind: ReceiverKind, model: string, faults: Faults) {
  let workers: Worker[] = []
  let packedBytes: number | undefined
  /** Of the tensors of this update so far: their bytes in float32 or bfloat16. */
  let received = new Map<string, { dtype: string; shape: readonly number[]; bytes: Buffer }>()
  const leave = () => {
    for (const worker of workers) worker.leave()
    workers = []
  }
  return {
    leave,

    async join(place: Joining) {
      leave()
      received = new Map()
      packedBytes = place.packed ? place.packed_buffer_size_bytes : undefined
      const count = faults.workers ?? 1
      const ranks = Array.from({ length: count }, (_, i) => place.rank_offset + i)
      workers = await Promise.all(
        ranks.map(rank =>
          kind === 'vllm'
            ? joinById(Buffer.from(place.nccl_unique_id_b64, 'base64'), rank, faults)
            : joinByStore(place, rank, faults),
        ),
      )
    },

    /** A directory with the tensors that came, which must be the model's own in names and shapes. */
    async receive({ names, shapes, dtype_names: named, dtypes = named! }: Announced): Promise<string> {
      if (workers.length === 0) throw new Error('weight transfer not initialized')
      const sizes = shapes.map((shape, i) => shape.reduce((a, b) => a * b, widths[dtypes[i]!]!))
      // Without packing each tensor is a broadcast.
      const packs = packedBytes === undefined ? sizes.map((_, i) => [i]) : packsOf(sizes, packedBytes)
      const isPacked = packedBytes !== undefined
      const all = await Promise.all(
        workers.map(worker =>
          worker.receive(
            packs.map(pack => (isPacked ? 'uint8' : dtypes[pack[0]!]!)),
            packs.map(pack => (isPacked ? [sum(pack.map(i => sizes[i]!))] : shapes[pack[0]!]!)),
          ),
        ),
      )
      const [first, ...others] = all
      for (const other of others)
        if (!Buffer.concat(other).equals(Buffer.concat(first!)))
          throw new Error('workers received other bytes')
      for (const [p, pack] of packs.entries()) {
        let at = 0
        for (const i of pack) {
          const bytes = first![p]!.subarray(at, at + sizes[i]!)
          received.set(names[i]!, { dtype: storedNames[dtypes[i]!]!, shape: shapes[i]!, bytes })
          at += sizes[i]!
        }
        if (at !== first![p]!.length)
          throw new Error(`${first![p]!.length} bytes came, and ${at} were announced`)
      }
      return writeModel()
    },
  }

  function writeModel(): string {
    const own = readSafetensors(path.join(model, 'model.safetensors'))
    for (const [name, { shape }] of received) {
      const { shape: expected } = own.get(name) ?? {}
      if (String(shape) !== String(expected))
        throw new Error(`${name} is (${shape}), and the model has (${expected})`)
    }
    const dir = makeTempDir()
    if (received.size < own.size) return dir
    for (const name of readdirSync(model)) {
      if (name.endsWith('.json')) copyFileSync(path.join(model, name), path.join(dir, name))
    }
    let at = 0
    const header = [...received].map(([name, { dtype, shape, bytes }]) => {
      at += bytes.length
      return [name, { dtype, shape, data_offsets: [at - bytes.length, at] }]
    })
    const data = Buffer.concat([...received.values()].map(({ bytes }) => bytes))
    writeSafetensors(path.join(dir, 'model.safetensors'), Object.fromEntries(header), data)
    received = new Map()
    return dir
  }
}

const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0)

/** Numbers of tensors: a pack ends with the one with which it has more than `most` bytes. */
function packsOf(sizes: readonly number[], most: number): number[][] {
  const packs: number[][] = []
  let bytes = Infinity
  for (const [i, size] of sizes.entries()) {
    if (bytes > most) {
      packs.push([])
      bytes = 0
    }
    packs.at(-1)!.push(i)
    bytes += size
  }
  return packs
}

async function joinById(id: Buffer, rank: number, faults: Faults, warmsUp = true): Promise<Worker> {
  const joined: FakeRank = await joinFakeNccl(id, rank, warmsUp)
  return {
    async receive(dtypes) {
      const all: Buffer[] = []
      for (const n of dtypes.keys())
        all.push(await joined.receive(() => faults.onBroadcast?.(n + 1) ?? Promise.resolve()))
      return all
    },
    leave: joined.leave,
  }
}

/** As SGLang's workers do: torch's own process group, in Python, or of NCCL at least its store. */
async function joinByStore(place: Joining, rank: number, faults: Faults): Promise<Worker> {
  const { command, env } = torchPython()
  const told = [
    place.backend,
    place.master_address,
    place.master_port,
    place.world_size,
    rank,
    place.group_name,
  ]
  const child = spawn(command, ['-c', receiverScript, ...told.map(String)], {
    env: { ...process.env, ...env },
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  const lines = answersOf(child)
  const [id] = await lines.next()
  if (place.backend === 'nccl') {
    child.kill()
    return joinById(Buffer.from(id!, 'base64'), rank, faults, false)
  }
  return {
    async receive(dtypes, shapes) {
      await faults.onBroadcast?.(1)
      child.stdin!.write(`${JSON.stringify({ dtypes, shapes })}\n`)
      const files = await lines.next()
      return files.map(text => Buffer.from(text, 'base64'))
    },
    leave: () => void child.kill(),
  }
}

/** The lines of a child, each a JSON array of texts. */
function answersOf(child: ChildProcess) {
  const lines: string[] = []
  let errors = ''
  let wake = () => {}
  let isOver = false
  createInterface({ input: child.stdout! }).on('line', line => {
    lines.push(line)
    wake()
  })
  child.stderr!.setEncoding('utf8').on('data', text => {
    errors += text
  })
  child.on('close', () => {
    isOver = true
    wake()
  })
  return {
    async next(): Promise<string[]> {
      while (lines.length === 0) {
        if (isOver) throw new Error(`the receiver has ended: ${errors.trim().split('\n').at(-1)}`)
        await new Promise<void>(resolve => (wake = resolve))
      }
      return JSON.parse(lines.shift()!)
    },
  }
}
