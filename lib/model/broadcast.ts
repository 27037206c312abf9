/** A policy's weights as broadcasts to the workers of inference servers: the engine's groups with types and checks. */
import { type CallOptions, type Control, checkCallOptions, runCall } from '../base/call.js'
import { invalidValue } from '../base/errors.js'
import { loadEngine } from '../setup/engine-addon.js'
import type { BroadcastGroup, Device, GroupCall, GroupOptions, TensorInfo } from './policy.js'

/** Opaque. */
type Handle = object
type Group = object

/** The part of the engine addon that groups need (bindings/broadcast.h, bindings/engine.cpp). */
export interface BroadcastAddon {
  readonly Control: new () => Control
  checkNccl(library: string): void
  tensors(policy: Handle): TensorInfo[]
  openGroup(options: object, control: Control): Promise<{ handle: Group; id: Uint8Array; port: number }>
  joinGroup(group: Group, size: number, timeoutMs: number, control: Control): Promise<void>
  broadcast(policy: Handle, group: Group, part: object, control: Control): Promise<void>
  closeGroup(group: Group): void
}

/** Throws ERR_RAPO_DEVICE where NCCL cannot be loaded. @param library GroupOptions.library */
export function checkNccl(library = ''): void {
  ;(loadEngine() as unknown as BroadcastAddon).checkNccl(library)
}

/** @param onPolicy runs a call of the policy after those before */
export async function openGroup(
  addon: BroadcastAddon,
  policy: Handle,
  device: Device,
  options: GroupOptions,
  onPolicy: <T>(options: CallOptions, run: (control: Control) => Promise<T>) => Promise<T>,
): Promise<BroadcastGroup> {
  const { backend, library = '', name = '', address = '', timeoutSeconds } = options
  if (backend !== 'nccl' && backend !== 'gloo') invalidValue('backend', backend, 'nccl or gloo')
  if (backend === 'gloo' && (name === '' || address === ''))
    invalidValue('name and address', `${name}, ${address}`, 'texts with backend gloo')
  if (backend === 'nccl' && device === 'cpu' && library === '')
    invalidValue('backend', backend, 'gloo for a policy on the CPU: NCCL sends from the memory of a GPU')
  const native = { backend, device, library, name, address, timeoutMs: milliseconds(timeoutSeconds) }
  const { handle, id, port } = await addon.openGroup(native, new addon.Control())
  return {
    id,
    port,
    join: (size, call) => {
      checkCall(call)
      if (!(Number.isSafeInteger(size) && size >= 2 && size < 2 ** 31))
        invalidValue('size', size, 'an integer ≥ 2')
      return runCall(new addon.Control(), call, control =>
        addon.joinGroup(handle, size, milliseconds(call.timeoutSeconds), control),
      )
    },
    broadcast: ({ first, count, packedBytes }, call) => {
      checkCall(call)
      for (const [field, value] of Object.entries({ first, count, packedBytes }))
        if (!(Number.isSafeInteger(value) && value >= 0)) invalidValue(field, value, 'an integer ≥ 0')
      const part = { first, count, packedBytes, timeoutMs: milliseconds(call.timeoutSeconds) }
      return onPolicy(call, control => addon.broadcast(policy, handle, part, control))
    },
    close: () => addon.closeGroup(handle),
  }
}

function checkCall(call: GroupCall): void {
  checkCallOptions(call)
  milliseconds(call.timeoutSeconds)
}

function milliseconds(timeoutSeconds: number): number {
  if (!(timeoutSeconds > 0 && timeoutSeconds <= 1e6))
    invalidValue('timeoutSeconds', timeoutSeconds, 'a number > 0 and ≤ 1e6')
  return Math.ceil(timeoutSeconds * 1000)
}
