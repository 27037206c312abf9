"""The training step as it is commonly written with transformers and torch: whole logits of both models, log_softmax in float32,
autograd. For qwen.py and gpu_engine_peers.py."""

import torch


def loss(policy, reference, ids, prompt):
    """The mean over the tokens after the first `prompt` of ids (B, T), with advantages from -1 to 1."""
    targets = ids[:, prompt:, None]
    with torch.no_grad():
        logits = reference(ids).logits[:, prompt - 1 : -1].float()
        old = torch.log_softmax(logits, -1).gather(-1, targets)[..., 0]
        del logits
    logits = policy(ids).logits[:, prompt - 1 : -1].float()
    logprobs = torch.log_softmax(logits, -1)
    chosen = logprobs.gather(-1, targets)[..., 0]
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    advantages = torch.linspace(-1, 1, len(ids), device=ids.device)[:, None]
    ratio = (chosen - chosen.detach()).exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    d = old - chosen
    return -(gain - 0.02 * (d.exp() * d - d.exp() + 1) + 0.003 * entropy).mean()
