/** What the kernels should find this machine to be. */
import { readFileSync } from 'node:fs'

const needs = {
  avx512bf16: ['avx512_bf16'],
  avx512: ['avx512f', 'avx512bw', 'avx512dq', 'avx512vl', 'avx2', 'fma'],
  avx2: ['avx2', 'fma'],
  portable: [],
}

/** The instruction sets of Linux on x86-64, fastest first, by what Linux says of the processor. */
export function x86Isas(): string[] {
  const flags = new Set(/^flags\s*: (.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))![1]!.split(' '))
  return Object.entries(needs)
    .filter(([, wanted]) => wanted.every(flag => flags.has(flag)))
    .map(([isa]) => isa)
}
