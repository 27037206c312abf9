/** A local npm registry that serves the packages in node_modules, so that tests install packages without a network. */
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import path from 'node:path'

interface Manifest {
  readonly name: string
  readonly version: string
}

/** Serves every package that an installed rapo needs. Tarballs are written to dir. The caller must close it. */
export async function serveRegistry(root: string, dir: string): Promise<{ url: string; close(): void }> {
  const lock = JSON.parse(readFileSync(path.join(root, 'package-lock.json'), 'utf8'))
  const paths = Object.entries<{ dev?: boolean }>(lock.packages)
    .filter(([file, entry]) => file.startsWith('node_modules/') && !entry.dev)
    .map(([file]) => path.join(root, file))
  mkdirSync(dir, { recursive: true })
  const args = ['pack', '--json', '--ignore-scripts', '--pack-destination', dir, ...paths]
  const packed: { filename: string; integrity: string }[] = JSON.parse(
    execFileSync('npm', args, { cwd: root, encoding: 'utf8' }),
  )
  const packages = paths.map((file, i) => {
    const manifest: Manifest = JSON.parse(readFileSync(path.join(file, 'package.json'), 'utf8'))
    return { manifest, ...packed[i]! }
  })

  const server = createServer((request, response) => {
    const name = decodeURIComponent(request.url!.slice(1))
    if (name.startsWith('-/')) {
      response.end(readFileSync(path.join(dir, path.basename(name))))
      return
    }
    const versions = packages
      .filter(({ manifest }) => manifest.name === name)
      .map(({ manifest, filename, integrity }) => {
        const dist = { tarball: `${url}-/${filename}`, integrity }
        return [manifest.version, { ...manifest, dist }] as const
      })
    response.statusCode = versions.length ? 200 : 404
    const latest = versions.at(-1)?.[0]
    response.end(JSON.stringify({ name, 'dist-tags': { latest }, versions: Object.fromEntries(versions) }))
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
  return { url, close: () => server.close() }
}
