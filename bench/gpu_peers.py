"""What bench/gpu.ts compares with, in torch on a CUDA device. Prints one line of JSON.

Usage: gpu_peers.py ROWS VOCAB HEAD_ROWS CHANNELS. Times are medians in milliseconds, by events on the device, after
warming up. The objective of torch eager and torch.compile is the rapo preset (as in torch_loss.py); Liger's Triton
grpo_loss computes GRPO with reverse KL, without reweighting or entropy, and its reference's log-probs by its own kernel.
Of the fused head: its four matrix products alone (torch's, chunks of 4096 rows, the weight's gradient in bfloat16), and
Liger's fused-linear GRPO, which computes the same as its grpo_loss.

Where torch has no CUDA, everything is run once on the CPU instead, to see that it runs: with small numbers.
"""

import json
import sys
import time

import torch

N, V, HEAD_ROWS, C = (int(word) for word in sys.argv[1:5])
on_gpu = torch.cuda.is_available()
device = torch.device("cuda" if on_gpu else "cpu")
torch.manual_seed(1)


def median_ms(call, repeats=10, warm_up=3):
    if not on_gpu:
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


result = {"device": torch.cuda.get_device_name(device) if on_gpu else "cpu", "torch": torch.__version__}

# Bytes read and written by a large copy; bf16 GEMM on random numbers.
source = torch.empty(2**30 if on_gpu else 2**20, dtype=torch.uint8, device=device).random_()
target = torch.empty_like(source)
result["copyGBs"] = 2 * source.numel() / median_ms(lambda: target.copy_(source)) / 1e6
del source, target
size = 8192 if on_gpu else 64
a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
result["gemmTFLOPs"] = 2 * size**3 / median_ms(lambda: a @ b) / 1e9
del a, b

B, L = max(1, N // 1024), min(N, 1024)
z = torch.randn(B, L + 1, V, device=device, dtype=torch.bfloat16) * 3
u = z + 0.3 * torch.randn_like(z)
ids = torch.randint(V, (B, L), device=device)
advantage = torch.randn(B, device=device)
n, phi = 1 / (B * L), torch.tensor([0.7, 1.0], device=device).repeat(B * L)[: B * L]
old = torch.full((B * L,), -12.0, device=device)
alpha, beta, low, high = 0.02, 0.003, 0.2, 0.2


def loss_of(z, u):
    z, u = z.float(), u.float()
    l = torch.log_softmax(z, -1)
    index = ids.reshape(-1)[:, None]
    lp = l.gather(1, index)[:, 0]
    with torch.no_grad():
        q = torch.log_softmax(phi[:, None] * u, -1).gather(1, index)[:, 0]
    d = (q - lp).clamp(max=20)
    w = d.exp()
    kl = w * d - w + 1
    ratio = (lp - old).clamp(max=20).exp()
    each = advantage.repeat_interleave(L)
    g = torch.minimum(ratio * each, ratio.clamp(1 - low, 1 + high) * each)
    entropy = -(l.exp() * l).sum(-1)
    return -(n * (g - alpha * kl + beta * entropy)).sum()


def value_and_gradient(function):
    flat = z[:, :L].reshape(B * L, V).contiguous().requires_grad_()
    reference = u[:, :L].reshape(B * L, V).contiguous()

    def call():
        flat.grad = None
        function(flat, reference).backward()

    return call


def liger():
    from liger_kernel.ops.grpo_loss import fused_selective_log_softmax
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    logits = z.clone().requires_grad_()

    def call():
        logits.grad = None
        ref_logp = fused_selective_log_softmax(u, ids, 1.0)
        loss, _ = triton_grpo_loss(
            logits, old.view(B, L), ref_logp, ids, advantage,
            temperature=1.0, beta=alpha, eps_low=low, eps_high=high, inplace=False, loss_type="grpo", reduce=True,
        )  # fmt: skip
        loss.backward()

    return call


def head_tensors():
    hidden = torch.randn(HEAD_ROWS, C, device=device, dtype=torch.bfloat16)
    weight = torch.randn(V, C, device=device, dtype=torch.bfloat16) / C**0.5
    return hidden, weight, hidden + 0.1 * torch.randn_like(hidden), weight.clone()


def head_products():
    hidden, weight, ref_hidden, ref_weight = head_tensors()
    chunk = min(4096, HEAD_ROWS)
    logits, ref_logits = (torch.empty(chunk, V, device=device, dtype=torch.bfloat16) for _ in range(2))
    grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)

    def call():
        for first in range(0, HEAD_ROWS, chunk):
            rows = slice(first, min(first + chunk, HEAD_ROWS))
            z, u = logits[: rows.stop - first], ref_logits[: rows.stop - first]
            torch.mm(hidden[rows], weight.T, out=z)
            torch.mm(ref_hidden[rows], ref_weight.T, out=u)
            torch.mm(z, weight, out=grad_hidden[rows])
            grad_weight.addmm_(z.T, hidden[rows])

    return call


def liger_head():
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    sequences = max(1, HEAD_ROWS // 1024)
    length = HEAD_ROWS // sequences
    hidden, weight, ref_hidden, ref_weight = head_tensors()
    shape = (sequences, length, C)
    hidden, ref_hidden = hidden[: sequences * length].view(shape), ref_hidden[: sequences * length].view(shape)
    hidden.requires_grad_()
    weight.requires_grad_()
    tokens = torch.randint(V, (sequences, length), device=device)
    mask = torch.ones(sequences, length, device=device)
    loss_of_head = LigerFusedLinearGRPOLoss(
        beta=alpha, compiled=on_gpu, epsilon_low=low, epsilon_high=high, loss_type="grpo"
    )

    def call():
        hidden.grad = weight.grad = None
        loss, _ = loss_of_head(
            hidden, weight, tokens, mask, torch.randn(sequences, device=device),
            old_per_token_logps=torch.full((sequences, length), -12.0, device=device),
            ref_input=ref_hidden, ref_weight=ref_weight,
        )  # fmt: skip
        loss.backward()

    return call


def measure(makers):
    measured = {}
    for name, make in makers.items():
        call = None
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            call = make()
            ms = median_ms(call)
            measured[name] = {"ms": ms, "peakGB": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0}
        except Exception as error:  # out of memory, or no such package: said in the table
            measured[name] = {"error": str(error).strip().split("\n")[0][:200]}
    return measured


result["peers"] = measure({
    "torch eager": lambda: value_and_gradient(loss_of),
    "torch.compile": lambda: value_and_gradient(torch.compile(loss_of)),
    "liger grpo_loss": liger,
})  # fmt: skip
del z, u
result["head"] = measure({"its products alone": head_products, "liger fused-linear GRPO": liger_head})
print(json.dumps(result))
