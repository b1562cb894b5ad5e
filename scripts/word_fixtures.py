"""Reference of the objective "words": the loss and its gradients by PyTorch's autograd.

    python scripts/word_fixtures.py sq-llava-train/tests/fixtures/words.safetensors

Three samples of 4, 3 and 5 image tokens and seven words; sample 0 says word 2 twice, all say word 5, none
says word 6, and the words of sample 2 count half. Needs torch and safetensors.
"""

import sys

import torch
from safetensors.torch import save_file

HIDDEN = 6
TOKENS = [4, 3, 5]
WORDS = [[0, 2, 2, 5], [1, 2, 5], [3, 4, 5, 0]]
WEIGHTS = [0.2, 0.2, 0.1]
LENGTH_WEIGHT = 0.7


def main(out: str) -> None:
    torch.manual_seed(7)
    embeddings = (torch.randn(7, HIDDEN) * 0.3 + 0.1).double()
    samples = [(torch.randn(n, HIDDEN) * scale).double().requires_grad_() for n, scale in zip(TOKENS, (0.2, 1.0, 0.6))]
    apart = embeddings - embeddings.mean(0)
    r = apart.norm(dim=1).pow(2).mean().sqrt()
    said = []
    for tokens in samples:
        cosine = 45.0 * (tokens / tokens.norm(dim=1, keepdim=True)) @ (apart / r).T
        said.append((3.0 * cosine).exp().mean(0).log() / 3.0)
    said = torch.stack(said)
    losses, total = [], torch.zeros((), dtype=torch.double)
    for i, words in enumerate(WORDS):
        for word in words:
            having = sum(word in other for other in WORDS)
            share = having * said[i, word].exp() / said[:, word].exp().sum()
            losses.append(-share.log())
            total = total + WEIGHTS[i] * losses[-1]
    usual = embeddings.norm(dim=1).pow(2).mean().sqrt()
    lengths = torch.cat(samples).norm(dim=1)
    total = total + 0.1 * LENGTH_WEIGHT * (lengths / usual).log().pow(2).mean()
    total.backward()
    tensors = {"embeddings": embeddings, "losses": torch.stack(losses).detach()}
    for i, tokens in enumerate(samples):
        tensors[f"tokens.{i}"] = tokens.detach()
        tensors[f"grad.{i}"] = tokens.grad
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, out)


if __name__ == "__main__":
    main(sys.argv[1])
