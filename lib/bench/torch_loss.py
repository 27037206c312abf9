"""The rapo preset in plain torch, for lib/bench/peer.ts: eager and torch.compile.

Usage: torch_loss.py DIR, which holds batch.json and the raw arrays that it names. Reads commands from standard input,
one a line, and answers each with one line of JSON:
  prepare PEER   two warm-up calls; writes the gradient to DIR/grad.bin      -> {"loss", "torch"} or {"error"}
  time PEER      one call of value and gradient                              -> {"ms"}
PEER is eager or compile; `time copy` copies the logits into another array on the same threads. The arithmetic is
float32, whatever the type of the logits and of their gradient.
"""

import json
import os
import sys
import time

directory = sys.argv[1]
spec = json.load(open(os.path.join(directory, "batch.json")))
os.environ["OMP_NUM_THREADS"] = str(spec["threads"])
import torch  # noqa: E402

torch.set_num_threads(spec["threads"])
N, V = spec["rows"], spec["vocabSize"]
dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[spec["dtype"]]


def read(name, dtype, size=N):
    return torch.from_file(os.path.join(directory, f"{name}.bin"), size=size, dtype=dtype).clone()


z = read("logits", dtype, N * V).view(N, V).requires_grad_()
u = read("refLogits", dtype, N * V).view(N, V)
ids = read("tokenIds", torch.int32).long()[:, None]
n, advantage, phi, old = (
    read(name, torch.float32) for name in ("tokenWeights", "advantages", "refWeights", "oldLogprobs")
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


losses = {"eager": loss_of, "compile": torch.compile(loss_of)}


def call(peer):
    if peer == "copy":
        call.copy = getattr(call, "copy", torch.empty_like(u))
        call.copy.copy_(u)
        return None
    z.grad = None
    loss = losses[peer](z, u)
    loss.backward()
    return loss


for line in sys.stdin:
    command, peer = line.split()
    if command == "prepare":
        try:
            call(peer)  # compiles; the next call may still be slow
            loss = call(peer).item()
            path = os.path.join(directory, "grad.bin")
            torch.from_file(path, shared=True, size=N * V, dtype=dtype).copy_(z.grad.view(-1))
            answer = {"loss": loss, "torch": torch.__version__}
        except Exception as error:  # torch.compile needs a C++ compiler of its own
            answer = {"error": str(error).strip().split("\n")[-1]}
    else:
        start = time.perf_counter()
        call(peer)
        answer = {"ms": (time.perf_counter() - start) * 1e3}
    print(json.dumps(answer), flush=True)
