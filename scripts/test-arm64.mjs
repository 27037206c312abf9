// npm run test:arm64: the kernels for 64-bit Arm, cross-compiled and run in QEMU against the oracle (test/native/kernels.cpp).
// On Debian: apt-get install g++-aarch64-linux-gnu qemu-user cmake. Without these tools it says so and does nothing.
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const build = join(root, 'build', 'arm64')
const compiler = 'aarch64-linux-gnu-g++'

for (const tool of ['cmake', compiler, 'qemu-aarch64']) {
  if (spawnSync(tool, ['--version'], { stdio: 'ignore' }).status === 0) continue
  console.log(`SKIPPED test:arm64: ${tool} is missing`)
  process.exit(0)
}
run('cmake', [
  ...['-S', root, '-B', build, '-DCMAKE_BUILD_TYPE=Release', '-DRAPO_NATIVE_TESTS=ON'],
  ...['-DCMAKE_SYSTEM_NAME=Linux', '-DCMAKE_SYSTEM_PROCESSOR=aarch64', `-DCMAKE_CXX_COMPILER=${compiler}`],
  '-DCMAKE_EXE_LINKER_FLAGS=-static', // then QEMU needs no libraries
])
run('cmake', ['--build', build, '--target', 'rapo_kernels_test', '-j', '2'])
run('qemu-aarch64', [join(build, 'native', 'kernels', 'rapo_kernels_test')])

function run(command, args) {
  const { status } = spawnSync(command, args, { cwd: root, stdio: 'inherit' })
  if (status !== 0) process.exit(status ?? 1)
}
