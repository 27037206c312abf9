/** CMake's build trees. */
import { existsSync, readdirSync, readFileSync, realpathSync, rmSync } from 'node:fs'
import { join } from 'node:path'

/**
 * Makes CMake configure a tree anew where its cache cannot be used: the attempt that wrote the cache failed, the compiler
 * or the build program that the cache names is gone, or the tree was copied from elsewhere. CMakeFiles goes with the cache,
 * since it holds what was found of the compiler. Compiled files stay.
 */
export function dropBrokenCache(tree: string): void {
  if (isGenerated(tree) && isCurrent(tree)) return
  for (const name of ['CMakeCache.txt', 'CMakeFiles']) {
    rmSync(join(tree, name), { recursive: true, force: true })
  }
}

/** Whether there are build files. CMake writes its cache even where configuring fails, and these only at the end. */
function isGenerated(tree: string): boolean {
  return readdirSync(tree).some(name => /^(Makefile|build\.ninja|.+\.(slnx?|xcodeproj))$/.test(name))
}

function isCurrent(tree: string): boolean {
  const file = join(tree, 'CMakeCache.txt')
  if (!existsSync(file)) return true
  const content = readFileSync(file, 'utf8')
  const entryOf = (name: string) => new RegExp(`^${name}:\\w+=(.+)$`, 'm').exec(content)?.[1]
  const place = entryOf('CMAKE_CACHEFILE_DIR')
  if (place !== undefined && !(existsSync(place) && realpathSync(place) === realpathSync(tree))) return false
  const programs = ['CMAKE_CXX_COMPILER', 'CMAKE_MAKE_PROGRAM'].map(entryOf)
  return programs.every(program => program === undefined || existsSync(program))
}
