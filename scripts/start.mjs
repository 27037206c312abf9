// npm start: does all set-up, then runs the demo. Further arguments are passed to `rapo demo`.
import { spawn } from 'node:child_process'
import { bootstrap, root } from './bootstrap.mjs'

await bootstrap()
const child = spawn(
  process.execPath,
  ['--import', 'tsx', 'lib/cli/cli.ts', 'demo', ...process.argv.slice(2)],
  {
    cwd: root,
    stdio: 'inherit',
  },
)
// A terminal sends Ctrl-C to both processes, and the demo decides when it ends. A signal to this process alone is passed on.
process.on('SIGINT', () => {})
process.on('SIGTERM', () => child.kill('SIGTERM'))
child.on('exit', (code, signal) => {
  process.exitCode = code ?? 1
  if (signal) console.error(`the demo was ended by ${signal}`)
})
