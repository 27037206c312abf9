/** Git LFS pointers: what a clone without `git lfs` holds in place of each large file. */

/** Whether a file's first bytes are those of a pointer. */
export function isLfsPointer(content: Uint8Array | string): boolean {
  const begin = 'version https://git-lfs.github.com/spec/'
  const found =
    typeof content === 'string' ? content : Buffer.from(content.subarray(0, begin.length)).toString()
  return found.startsWith(begin)
}

/** What an error says of such a file. */
export function lfsMessage(file: string): string {
  return `${file} is a Git LFS pointer, not the file: git lfs pull`
}
