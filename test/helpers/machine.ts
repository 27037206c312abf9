/** What the kernels should detect on this machine. */
import { readFileSync } from 'node:fs'

const needs = {
  avx512bf16: ['avx512_bf16'],
  avx512: ['avx512f', 'avx512bw', 'avx512dq', 'avx512vl', 'avx2', 'fma'],
  avx2: ['avx2', 'fma'],
  portable: [],
}

/** The instruction sets of an x86-64 machine with Linux, fastest first, from Linux's list of processor flags. */
export function x86Isas(): string[] {
  const flags = new Set(/^flags\s*: (.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))![1]!.split(' '))
  return Object.entries(needs)
    .filter(([, wanted]) => wanted.every(flag => flags.has(flag)))
    .map(([isa]) => isa)
}
