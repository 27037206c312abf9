// npm run test:qwen: the tests that need a real Qwen2.5 (test/qwen/model.ts says which) and transformers.
import { spawnSync } from 'node:child_process'
import { bootstrap, root } from './bootstrap.mjs'

await bootstrap()
const args = ['--import', 'tsx', 'test/qwen/compare.ts']
const { status } = spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit' })
process.exitCode = status ?? 1
