/** Inspects a directory with libtorch by its files alone, without Python and CMake. */
import { existsSync, readdirSync, readFileSync, realpathSync } from 'node:fs'
import { join } from 'node:path'

export interface TorchDir {
  /** A libtorch or torch directory, or a prefix such as /usr. */
  readonly dir: string
  /** The directory of TorchConfig.cmake. */
  readonly cmakeDir: string
  /** With the build's suffix if the files have it: 2.13.0+cpu. */
  readonly version: string
  /** false: compiled with the C++ ABI before GCC 5 (Linux wheels before 2.7). */
  readonly cxx11Abi: boolean
  readonly cuda: boolean
}

/** The libtorch in dir; otherwise the reason why there is none, as a phrase. */
export function inspectLibtorch(dir: string): TorchDir | string {
  let real: string
  try {
    real = realpathSync(dir)
  } catch {
    return `${dir} does not exist`
  }
  const cmakeDir = cmakeDirs(real).find(candidate => existsSync(join(candidate, 'TorchConfig.cmake')))
  if (!cmakeDir) return `${real} holds no share/cmake/Torch/TorchConfig.cmake`
  const version =
    match(join(real, 'version.py'), /^__version__ = '([^']+)'/m) ??
    match(join(real, 'build-version'), /^(\S+)/) ??
    match(join(cmakeDir, 'TorchConfigVersion.cmake'), /PACKAGE_VERSION "([^"]+)"/)
  if (!version) return `${cmakeDir} does not tell its version`
  const cxx11Abi = !match(join(cmakeDir, 'TorchConfig.cmake'), /(_GLIBCXX_USE_CXX11_ABI=0)/)
  const cuda = existsSync(join(real, 'lib', 'libtorch_cuda.so'))
  return { dir: real, cmakeDir, version, cxx11Abi, cuda }
}

function cmakeDirs(dir: string): string[] {
  const libs = ['lib', 'lib64']
  // Debian: lib/x86_64-linux-gnu/cmake
  const triplets = existsSync(join(dir, 'lib')) ? readdirSync(join(dir, 'lib')) : []
  for (const name of triplets) if (/-linux-gnu/.test(name)) libs.push(join('lib', name))
  return ['share', ...libs].map(base => join(dir, base, 'cmake', 'Torch'))
}

function match(file: string, pattern: RegExp): string | undefined {
  try {
    return readFileSync(file, 'utf8').match(pattern)?.[1]
  } catch {
    return undefined
  }
}
