/** A worker of SGLang as far as torch.distributed makes it, in a Python that has torch. */
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { listEngines } from '../../lib/setup/cache.js'

/** A Python with torch.distributed, and the environment in which it finds it; or why there is none. */
export interface TorchPython {
  readonly command: string
  readonly env: Record<string, string>
  readonly problem?: string
}

let found: TorchPython | undefined

/** RAPO_TEST_PYTHON, or python3, with its own torch, or with the one that the engine was compiled against. */
export function torchPython(): TorchPython {
  found ??= findPython()
  return found
}

function findPython(): TorchPython {
  const command = process.env.RAPO_TEST_PYTHON || 'python3'
  const installed = listEngines().map(({ marker }) => path.dirname(marker.libtorch.dir))
  for (const site of ['', ...installed]) {
    const env: Record<string, string> = site === '' ? {} : { PYTHONPATH: site }
    const script = 'import torch.distributed as d; assert d.is_gloo_available()'
    const { status } = spawnSync(command, ['-c', script], { env: { ...process.env, ...env } })
    if (status === 0) return { command, env }
  }
  const problem = `${command} has no torch with Gloo (RAPO_TEST_PYTHON may name one that has)`
  return { command, env: {}, problem }
}

/**
 * Arguments: backend, host, port, world size, rank, name. Joins the group as SGLang's workers do: torch's rendezvous, its store
 * under the group's name, and a process group of that name. With gloo it prints [] and then answers each line { dtypes, shapes } with
 * what was broadcast, base64. With nccl, which needs a GPU, it prints what torch's NCCL looks up first: the id of its communicator.
 */
export const receiverScript = `
import base64, json, sys
from datetime import timedelta
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d
backend, host, port, world, rank, name = sys.argv[1:]
world, rank, patience = int(world), int(rank), timedelta(seconds=120)
store, _, _ = next(dist.rendezvous(f"tcp://{host}:{port}", rank, world, timeout=patience))
store.set_timeout(patience)
store = dist.PrefixStore(name, store)
def tell(value):
    print(json.dumps(value), flush=True)
if backend == "nccl":
    inner = dist.PrefixStore("cuda/", dist.PrefixStore(f"{name}/", store))
    tell([base64.b64encode(inner.get("0")).decode()])
    sys.exit(0)
group, _ = c10d._new_process_group_helper(world, rank, [], c10d.Backend(backend), store, group_name=name, timeout=patience)
c10d._world.pg_group_ranks[group] = {i: i for i in range(world)}
tell([])
for line in sys.stdin:
    asked = json.loads(line)
    out = []
    for dtype, shape in zip(asked["dtypes"], asked["shapes"]):
        weight = torch.empty(shape, dtype=getattr(torch, dtype))
        dist.broadcast(weight, src=0, group=group)
        out.append(base64.b64encode(bytes(weight.reshape(-1).view(torch.uint8).tolist())).decode())
    tell(out)
`
