/** NCCL without a GPU: a library for rank 0, compiled from test/native/fake_nccl.cpp, and the other ranks, which a fake server has. */
import { execFileSync } from 'node:child_process'
import { mkdirSync, renameSync, statSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const source = fileURLToPath(new URL('../native/fake_nccl.cpp', import.meta.url))
const directory = fileURLToPath(new URL('../../build/fake-nccl/', import.meta.url))

/** For RAPO_NCCL_LIBRARY; compiled when its source has changed. */
export function fakeNcclLibrary(): string {
  const library = join(directory, 'libfake_nccl.so')
  const age = (file: string) => statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0
  if (age(library) > age(source)) return library
  mkdirSync(directory, { recursive: true })
  // Several tests may build it at once.
  const own = `${library}.${process.pid}`
  const options = ['-std=c++17', '-O1', '-Wall', '-Wextra', '-shared', '-fPIC']
  execFileSync(process.env.CXX || 'c++', [...options, source, '-o', own], { stdio: 'inherit' })
  renameSync(own, library)
  return library
}

/** What broke the connection to rank 0. */
const GONE = 'rank 0 has left the group'

/** A rank from 1 on. */
export interface FakeRank {
  /** The bytes of the next broadcast, which rank 0 is told are there when `isTaken` settles. */
  receive(isTaken?: () => Promise<void>): Promise<Buffer>
  leave(): void
}

/** Joins with NCCL's id, and adds up one float with rank 0, as vLLM's workers do; `warmsUp` false: as those of torch. */
export async function joinFakeNccl(id: Buffer, rank: number, warmsUp = true): Promise<FakeRank> {
  const socket = connect(id.readUInt32LE(0), '127.0.0.1')
  const read = reader(socket)
  await new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject))
  const own = Buffer.alloc(4)
  own.writeInt32LE(rank)
  socket.write(own)
  const message = async (kind: 'R' | 'B') => {
    const head = await read(9)
    if (head.toString('latin1', 0, 1) !== kind) throw new Error(`${head[0]} came, and ${kind} was expected`)
    return read(Number(head.readBigUInt64LE(1)))
  }
  if (warmsUp) {
    await message('R')
    socket.write(Buffer.alloc(4))
  }
  return {
    async receive(isTaken = async () => {}) {
      const bytes = await message('B')
      await isTaken()
      socket.write(Buffer.alloc(1))
      return bytes
    },
    leave: () => socket.destroy(),
  }
}

/** Reads so many bytes, in the order of the calls. */
function reader(socket: Socket): (bytes: number) => Promise<Buffer> {
  let parts: Buffer[] = []
  let isOver = false
  let wake = () => {}
  socket.on('data', part => {
    parts.push(part)
    wake()
  })
  const end = () => {
    isOver = true
    wake()
  }
  socket.on('close', end).on('error', end)
  return async bytes => {
    for (;;) {
      const all = Buffer.concat(parts)
      if (all.length >= bytes) {
        parts = [all.subarray(bytes)]
        return all.subarray(0, bytes)
      }
      parts = [all]
      if (isOver) throw new Error(GONE)
      await new Promise<void>(resolve => (wake = resolve))
    }
  }
}
