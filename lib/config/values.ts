/** Schemas that several sections of the configuration use. */
import { z } from 'zod'

export const fraction = () => z.number().min(0).max(1)

export const count = (min = 1) => z.int().min(min)

/** The entries of a text with commas. */
export const list = (text: string) =>
  text
    .split(',')
    .map(item => item.trim())
    .filter(item => item !== '')

export function dropUndefined<T extends object>(values: T): Partial<T> {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as Partial<T>
}
