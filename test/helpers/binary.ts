/** Reads what an addon file is and needs from its headers: ELF, Mach-O and PE, 64-bit little-endian. */
export interface Binary {
  readonly format: 'elf' | 'mach-o' | 'pe'
  readonly arch: 'x64' | 'arm64' | 'unknown'
  /** Libraries that the file needs at load time. */
  readonly libraries: readonly string[]
  /** ELF: versions of symbols that the file needs, such as GLIBC_2.28. Mach-O: the oldest system, such as macOS 11. */
  readonly versions: readonly string[]
  /** ELF: exported symbols. */
  readonly exported: readonly string[]
  /** ELF: imported symbols. */
  readonly imported: readonly string[]
  /** ELF: whether an unload runs code of the file. */
  readonly hasDestructors: boolean
}

export function readBinary(bytes: Buffer): Binary {
  const magic = bytes.readUInt32LE(0)
  if (magic === 0x464c457f) return readElf(bytes)
  if (magic === 0xfeedfacf) return readMachO(bytes)
  if ((magic & 0xffff) === 0x5a4d) return readPe(bytes)
  throw new Error(`no addon: it begins with ${magic.toString(16)}`)
}

function text(bytes: Buffer, offset: number): string {
  return bytes.toString('latin1', offset, bytes.indexOf(0, offset))
}

const u64 = (bytes: Buffer, offset: number) => Number(bytes.readBigUInt64LE(offset))

function readElf(bytes: Buffer): Binary {
  const segments = Array.from({ length: bytes.readUInt16LE(56) }, (_, i) => {
    const at = u64(bytes, 32) + i * bytes.readUInt16LE(54)
    const [offset, address, size] = [8, 16, 32].map(field => u64(bytes, at + field)) as [
      number,
      number,
      number,
    ]
    return { type: bytes.readUInt32LE(at), offset, address, size }
  })
  const toOffset = (address: number) => {
    const { offset, address: start } = segments.find(
      s => s.type === 1 && address >= s.address && address < s.address + s.size,
    )!
    return offset + address - start
  }
  const { offset: start, size } = segments.find(s => s.type === 2)!
  const entries = Array.from({ length: size / 16 }, (_, i) => {
    return { tag: u64(bytes, start + 16 * i), value: u64(bytes, start + 16 * i + 8) }
  })
  const entryOf = (tag: number) => entries.find(entry => entry.tag === tag)?.value
  const strings = toOffset(entryOf(5)!)

  const versions: string[] = []
  let need = entryOf(0x6ffffffe) === undefined ? 0 : toOffset(entryOf(0x6ffffffe)!)
  while (need) {
    let aux = need + bytes.readUInt32LE(need + 8)
    for (let i = bytes.readUInt16LE(need + 2); i > 0; --i) {
      versions.push(text(bytes, strings + bytes.readUInt32LE(aux + 8)))
      aux += bytes.readUInt32LE(aux + 12)
    }
    const next = bytes.readUInt32LE(need + 12)
    need = next ? need + next : 0
  }

  const sections = Array.from({ length: bytes.readUInt16LE(60) }, (_, i) => u64(bytes, 40) + 64 * i)
  const symbols = sections.find(section => bytes.readUInt32LE(section + 4) === 11)!
  const exported: string[] = []
  const imported: string[] = []
  for (let i = 24; i < u64(bytes, symbols + 32); i += 24) {
    const symbol = u64(bytes, symbols + 24) + i
    const isDefined = bytes.readUInt16LE(symbol + 6) !== 0
    const names = isDefined ? exported : imported
    names.push(text(bytes, strings + bytes.readUInt32LE(symbol)))
  }
  const arch = { 62: 'x64', 183: 'arm64' } as const
  return {
    format: 'elf',
    arch: arch[bytes.readUInt16LE(18) as keyof typeof arch] ?? 'unknown',
    libraries: entries.filter(({ tag }) => tag === 1).map(({ value }) => text(bytes, strings + value)),
    versions,
    exported,
    imported,
    hasDestructors: entryOf(26) !== undefined, // DT_FINI_ARRAY
  }
}

function readMachO(bytes: Buffer): Binary {
  const libraries: string[] = []
  const versions: string[] = []
  let command = 32
  for (let i = bytes.readUInt32LE(16); i > 0; --i) {
    const kind = bytes.readUInt32LE(command)
    const LOAD_DYLIB = 0xc
    const BUILD_VERSION = 0x32
    if (kind === LOAD_DYLIB) libraries.push(text(bytes, command + bytes.readUInt32LE(command + 8)))
    if (kind === BUILD_VERSION) versions.push(`macOS ${bytes.readUInt32LE(command + 12) >> 16}`)
    command += bytes.readUInt32LE(command + 4)
  }
  const arch = { 16777223: 'x64', 16777228: 'arm64' } as const
  return {
    format: 'mach-o',
    arch: arch[bytes.readUInt32LE(4) as keyof typeof arch] ?? 'unknown',
    libraries,
    versions,
    exported: [],
    imported: [],
    hasDestructors: false,
  }
}

function readPe(bytes: Buffer): Binary {
  const header = bytes.readUInt32LE(0x3c)
  const optional = header + 24
  const sections = optional + bytes.readUInt16LE(header + 20)
  const toOffset = (address: number) => {
    for (let i = 0; i < bytes.readUInt16LE(header + 6); ++i) {
      const section = sections + 40 * i
      const start = bytes.readUInt32LE(section + 12)
      const size = bytes.readUInt32LE(section + 16)
      if (address >= start && address < start + size)
        return address - start + bytes.readUInt32LE(section + 20)
    }
    throw new Error(`no section at ${address}`)
  }
  const libraries: string[] = []
  for (
    let entry = toOffset(bytes.readUInt32LE(optional + 120));
    bytes.readUInt32LE(entry + 12);
    entry += 20
  ) {
    libraries.push(text(bytes, toOffset(bytes.readUInt32LE(entry + 12))))
  }
  const arch = { 34404: 'x64', 43620: 'arm64' } as const
  return {
    format: 'pe',
    arch: arch[bytes.readUInt16LE(header + 4) as keyof typeof arch] ?? 'unknown',
    libraries,
    versions: [],
    exported: [],
    imported: [],
    hasDestructors: false,
  }
}
