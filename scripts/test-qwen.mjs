// npm run test:qwen: runs the tests that need transformers and a real Qwen2.5 (see test/qwen/model.ts).
import { spawnSync } from 'node:child_process'
import { bootstrap, root } from './bootstrap.mjs'

await bootstrap()
const args = ['--import', 'tsx', 'test/qwen/compare.ts']
const { status } = spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit' })
process.exitCode = status ?? 1
