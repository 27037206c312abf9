"""What bench/gpu.ts compares with, in torch on a CUDA device. Prints one line of JSON.

Usage: gpu_peers.py ROWS VOCAB. Times are medians in milliseconds, by events on the device, after warming up. The
objective of torch eager and torch.compile is the rapo preset (as in torch_loss.py); Liger's Triton grpo_loss computes
GRPO with reverse KL, without reweighting or entropy, and its reference's log-probs by its own kernel.
"""

import json
import sys

import torch

N, V = int(sys.argv[1]), int(sys.argv[2])
device = torch.device("cuda")
torch.manual_seed(1)


def median_ms(call, repeats=10, warm_up=3):
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


result = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__}

# Bytes read and written by a large copy; bf16 GEMM on random numbers.
source = torch.empty(2**30, dtype=torch.uint8, device=device).random_()
target = torch.empty_like(source)
result["copyGBs"] = 2 * source.numel() / median_ms(lambda: target.copy_(source)) / 1e6
del source, target
size = 8192
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


peers = {
    "torch eager": lambda: value_and_gradient(loss_of),
    "torch.compile": lambda: value_and_gradient(torch.compile(loss_of)),
    "liger grpo_loss": liger,
}
result["peers"] = {}
for name, make in peers.items():
    try:
        call = make()
        torch.cuda.reset_peak_memory_stats()
        result["peers"][name] = {"ms": median_ms(call), "peakGB": torch.cuda.max_memory_allocated() / 1e9}
    except Exception as error:  # out of memory, or no such package: said in the table
        result["peers"][name] = {"error": str(error).strip().split("\n")[0][:200]}
    call = None
    torch.cuda.empty_cache()
print(json.dumps(result))
