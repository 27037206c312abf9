#!/usr/bin/env node
// `rapo`: a clone runs its own sources, an installed package what `npm run build` made of them.
import { existsSync } from 'node:fs'

const sources = new URL('../lib/cli/cli.ts', import.meta.url)
const isClone = existsSync(sources)
if (isClone) await import('tsx')
const { main } = await import(isClone ? sources.href : '../dist/cli/cli.js')
await main()
