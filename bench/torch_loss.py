"""The rapo preset in plain torch, for bench/loss.ts: eager and torch.compile.

Usage: torch_loss.py DIR, which holds batch.json and the raw arrays that it names. Reads commands from standard input,
one a line, and answers each with one line of JSON:
  prepare PEER   one warm-up call; writes the gradient to DIR/grad.bin as float32  -> {"loss"}
  time PEER N    N calls of value and gradient                                      -> {"ms": [...]}
PEER is eager or compile. The arithmetic is float32, whatever the type of the logits and of their gradient.
"""

import json
import os
import sys
import time

spec = json.load(open(os.path.join(sys.argv[1], "batch.json")))
os.environ["OMP_NUM_THREADS"] = str(spec["threads"])
import numpy as np  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(spec["threads"])
N, V = spec["rows"], spec["vocabSize"]
half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(spec["dtype"])


def read(name, dtype):
    return torch.from_numpy(np.fromfile(os.path.join(sys.argv[1], name), dtype=dtype))


def logits(name):
    if half is None:
        return read(name, np.float32).view(N, V)
    return read(name, np.int16).view(half).view(N, V)


z, u = logits("logits.bin").requires_grad_(), logits("refLogits.bin")
ids = read("tokenIds.bin", np.int32).long()[:, None]
n, advantage, phi, old = (
    read(f"{name}.bin", np.float32) for name in ("tokenWeights", "advantages", "refWeights", "oldLogprobs")
)
o = spec["objective"]


def loss_of(z, u):
    z, u = z.float(), u.float()
    l = torch.log_softmax(z, -1)
    lp = l.gather(1, ids)[:, 0]
    with torch.no_grad():
        q = torch.log_softmax(phi[:, None] * u, -1).gather(1, ids)[:, 0]
    d = (q - lp).clamp(max=o["maxLogRatio"])
    w = d.exp()
    kl = w * d - w + 1
    ratio = (lp - old).clamp(max=o["maxLogRatio"]).exp()
    g = torch.minimum(ratio * advantage, ratio.clamp(1 - o["clipLow"], 1 + o["clipHigh"]) * advantage)
    entropy = -(l.exp() * l).sum(-1)
    return -(n * (g - o["klCoef"] * kl + o["entropyCoef"] * entropy)).sum()


peers = {"eager": loss_of, "compile": torch.compile(loss_of)}


def call(peer):
    z.grad = None
    loss = peers[peer](z, u)
    loss.backward()
    return loss


for line in sys.stdin:
    command, peer, *rest = line.split()
    if command == "prepare":
        try:
            loss = call(peer).item()
            z.grad.float().numpy().tofile(os.path.join(sys.argv[1], "grad.bin"))
            answer = {"loss": loss, "torch": torch.__version__}
        except Exception as error:  # torch.compile needs a C++ compiler of its own
            answer = {"error": str(error).strip().split("\n")[-1]}
    else:
        ms = []
        for _ in range(int(rest[0])):
            start = time.perf_counter()
            call(peer)
            ms.append((time.perf_counter() - start) * 1e3)
        answer = {"ms": ms}
    print(json.dumps(answer), flush=True)
