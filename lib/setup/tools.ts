/** The programs that set-up needs from the machine, and one message for all that are missing. */
import { join } from 'node:path'
import { RapoError } from '../base/errors.js'
import { ask } from './process.js'

export interface Tool {
  /** Absent if the tool was not found or is too old. */
  readonly version?: string
  /** The reason why the tool cannot be used, as a phrase. */
  readonly problem?: string
}

export interface Tools {
  readonly compiler: Tool
  readonly cmake: Tool
  /** Optional: builds are somewhat faster with it. */
  readonly ninja: Tool
  /** A Python 3 that can make a virtual environment and install into it. Needed only if libtorch must be installed. */
  readonly python: Tool
}

export async function findTools(env: NodeJS.ProcessEnv = process.env): Promise<Tools> {
  const [compiler, cmake, ninja, python] = await Promise.all([
    findCompiler(env),
    findCMake(env),
    versionOf('ninja', env),
    findPython(env),
  ])
  return { compiler, cmake, ninja, python }
}

async function versionOf(command: string, env: NodeJS.ProcessEnv): Promise<Tool> {
  const { ok, stdout, problem } = await ask(command, ['--version'], { env })
  return ok ? { version: stdout.split('\n')[0]!.trim() } : { problem }
}

async function findCompiler(env: NodeJS.ProcessEnv): Promise<Tool> {
  // In CMake's way: if $CXX is set, nothing else is tried.
  const names = env.CXX ? [env.CXX.split(' ')[0]!] : ['c++', 'g++', 'clang++']
  for (const name of names) {
    const tool = await versionOf(name, env)
    if (tool.version) return tool
  }
  return { problem: env.CXX ? `CXX=${env.CXX} does not run` : `none of ${names.join(', ')} runs` }
}

/**
 * The CUDA compiler, looked for as in torch's CMake files: $CUDACXX alone if it is set; otherwise on PATH or under $CUDA_PATH.
 */
export async function findNvcc(env: NodeJS.ProcessEnv): Promise<Tool> {
  if (env.CUDACXX) {
    const tool = await versionOf(env.CUDACXX, env)
    return tool.version ? tool : { problem: `CUDACXX=${env.CUDACXX} does not run` }
  }
  const tool = await versionOf('nvcc', env)
  return tool.version || !env.CUDA_PATH ? tool : versionOf(join(env.CUDA_PATH, 'bin', 'nvcc'), env)
}

async function findCMake(env: NodeJS.ProcessEnv): Promise<Tool> {
  const tool = await versionOf('cmake', env)
  const [, major, minor] = tool.version?.match(/(\d+)\.(\d+)/) ?? []
  if (!tool.version) return tool
  if (Number(major) > 3 || (Number(major) === 3 && Number(minor) >= 19)) return tool
  return { problem: `${tool.version} is older than 3.19` }
}

async function findPython(env: NodeJS.ProcessEnv): Promise<Tool> {
  const script =
    'import sys\n' +
    'try: import venv\n' +
    'except ImportError: sys.exit("python3 has no module venv")\n' +
    'try: import ensurepip\n' +
    'except ImportError:\n' +
    '  try: import pip\n' +
    '  except ImportError: sys.exit("python3 has neither ensurepip nor pip")\n' +
    'print(".".join(map(str, sys.version_info[:3])))'
  const answer = await ask('python3', ['-c', script], { env })
  return answer.ok ? { version: answer.stdout.trim() } : { problem: answer.problem }
}

const needs = {
  compiler: 'a C++17 compiler',
  cmake: 'CMake >= 3.19',
  python: 'Python 3 with venv and pip',
} as const

const fixes = [
  {
    system: 'Debian, Ubuntu',
    command: 'sudo apt-get install',
    compiler: 'g++ make',
    cmake: 'cmake',
    python: 'python3-venv',
  },
  {
    system: 'Fedora',
    command: 'sudo dnf install',
    compiler: 'gcc-c++ make',
    cmake: 'cmake',
    python: 'python3 python3-pip',
  },
  { system: 'macOS', command: 'brew install', compiler: '', cmake: 'cmake', python: 'python' },
] as const

/** Throws ERR_RAPO_SETUP unless everything needed is there. The message names everything that is missing and how to get it. */
export function requireTools(tools: Tools, needed: readonly (keyof typeof needs)[]): void {
  const missing = needed.filter(name => tools[name].problem)
  if (missing.length === 0) return
  const lines = missing.map(name => `  ${needs[name]}: ${tools[name].problem}`)
  const commands = fixes.map(({ system, command, ...packages }) => {
    const names = missing.map(name => packages[name]).filter(Boolean)
    const parts = names.length ? [`${command} ${names.join(' ')}`] : []
    if (system === 'macOS' && missing.includes('compiler')) parts.unshift('xcode-select --install')
    return `  ${`${system}:`.padEnd(16)}${parts.join(' && ')}`
  })
  const text = [`rapo needs what this machine lacks:`, ...lines, 'To install it:', ...commands]
  if (missing.includes('cmake')) text.push('  (a newer CMake than the system has: pipx install cmake)')
  if (missing.includes('python')) {
    text.push('  (a newer Python than the system has: put its python3 first on PATH)')
  }
  throw new RapoError('ERR_RAPO_SETUP', text.join('\n'))
}
