/**
 * TensorBoard event files: TFRecords (length, masked CRC-32C of the length, data, masked CRC-32C of the data) of the
 * protocol buffer Event. Sources: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto,
 * tensorflow/core/framework/summary.proto.
 */
import { closeSync, openSync, writeSync } from 'node:fs'
import { hostname } from 'node:os'
import path from 'node:path'
import { asIoError, makeDirectories } from '../../base/files.js'

export interface TensorBoard {
  /** Appends one point to each curve, with the time of the call. Throws ERR_RAPO_IO. */
  add(step: number, values: readonly (readonly [tag: string, value: number])[]): void
  close(): void
}

/**
 * Makes the directory and a new event file in it. stepsDone: the number of steps of a resumed run; TensorBoard then drops the
 * points of later steps that earlier files have. Throws ERR_RAPO_IO.
 */
export function openTensorBoard(dir: string, stepsDone = 0): TensorBoard {
  const seconds = Math.floor(Date.now() / 1000)
  const file = path.join(dir, `events.out.tfevents.${seconds}.${hostname()}.${process.pid}`)
  const guard = <T>(body: () => T): T => {
    try {
      return body()
    } catch (error) {
      throw asIoError(`cannot write ${file}`, error)
    }
  }
  const descriptor = guard(() => {
    makeDirectories(dir)
    return openSync(file, 'a')
  })
  const write = (event: Buffer) => guard(() => writeSync(descriptor, encodeRecord(event)))
  const now = () => double(1, Date.now() / 1000)
  write(Buffer.concat([now(), text(3, 'brain.Event:2')]))
  // session_log { status: START }
  write(Buffer.concat([now(), integer(2, stepsDone + 1), message(7, integer(1, 1))]))
  return {
    add(step, values) {
      const summary = values.map(([tag, value]) => message(1, Buffer.concat([text(1, tag), float(2, value)])))
      write(Buffer.concat([now(), integer(2, step), message(5, Buffer.concat(summary))]))
    },
    close: () => closeSync(descriptor),
  }
}

export function encodeRecord(data: Uint8Array): Buffer {
  const head = Buffer.alloc(12)
  head.writeBigUInt64LE(BigInt(data.length))
  head.writeUInt32LE(maskedCrc(head.subarray(0, 8)), 8)
  const tail = Buffer.alloc(4)
  tail.writeUInt32LE(maskedCrc(data))
  return Buffer.concat([head, data, tail])
}

const crcTable = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte
  // 0x82f63b78: the Castagnoli polynomial, bits reversed.
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1
  return crc
})

export function crc32c(data: Uint8Array): number {
  let crc = 0xffffffff
  for (const byte of data) crc = crcTable[(crc ^ byte) & 0xff]! ^ (crc >>> 8)
  return (crc ^ 0xffffffff) >>> 0
}

/** Rotated and shifted, since a CRC over data that holds its own CRC would be weak. */
function maskedCrc(data: Uint8Array): number {
  const crc = crc32c(data)
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0
}

// The wire format of protocol buffers: a key (field number, wire type), then the value.

function varint(value: number): Buffer {
  const bytes: number[] = []
  let rest = value
  for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 128)
  return Buffer.from([...bytes, rest])
}

function integer(field: number, value: number): Buffer {
  return Buffer.concat([varint(field << 3), varint(value)])
}

function double(field: number, value: number): Buffer {
  const bytes = Buffer.alloc(9, (field << 3) | 1)
  bytes.writeDoubleLE(value, 1)
  return bytes
}

function float(field: number, value: number): Buffer {
  const bytes = Buffer.alloc(5, (field << 3) | 5)
  bytes.writeFloatLE(value, 1)
  return bytes
}

function message(field: number, content: Uint8Array): Buffer {
  return Buffer.concat([varint((field << 3) | 2), varint(content.length), content])
}

function text(field: number, value: string): Buffer {
  return message(field, Buffer.from(value))
}
