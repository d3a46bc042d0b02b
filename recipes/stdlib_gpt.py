"""A small byte-level GPT that learns to write Python from the source of Python's own standard library."""

import sysconfig
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Attention to the bytes before, then a small network, each added to what was there."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        batch, length, width = x.shape
        parts = self.qkv(self.before(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.between(x))


class GPT(nn.Module):
    """Bytes in, a score for every next byte out."""

    def __init__(self, width, heads, blocks, context):
        super().__init__()
        self.context = context
        self.byte, self.position = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, bytes_):
        x = self.byte(bytes_) + self.position(torch.arange(bytes_.shape[1], device=bytes_.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Text:
    """Every stretch of `context` + 1 bytes is a sample."""

    def __init__(self, text, context):
        self.text, self.context = text, context

    def __len__(self):
        return (len(self.text) - 1) // self.context

    def __getitem__(self, index):
        return self.text[index * self.context : (index + 1) * self.context + 1].astype(np.int64)


class NextByte:
    """The task: next-byte prediction on some megabytes of the standard library."""

    def __init__(self, width=96, heads=4, blocks=3, context=96, megabytes=2):
        self.shape = (width, heads, blocks, context)
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        text = np.frombuffer(b"".join(file.read_bytes() for file in files)[: megabytes << 20], dtype=np.uint8)
        split = len(text) * 19 // 20
        self.train, self.held_out = Text(text[:split], context), Text(text[split:][: 256 * context + 1], context)

    def model(self):
        return GPT(*self.shape)

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)

    def schedule(self, step, total_steps):
        return min(1.0, (step + 1) / 20) * (1 - 0.9 * step / total_steps)

    def data(self, split):
        return self.train if split == "train" else self.held_out

    def loss(self, model, batch):
        scores = model(batch[:, :-1])
        return F.cross_entropy(scores.flatten(0, 1).float(), batch[:, 1:].flatten())


class StdlibGPT(NextByte):
    """The same, and a sample at the end, for which one worker gets the whole model."""

    def finish(self, model):
        """Print a sample."""
        context = self.shape[-1]
        written = torch.tensor([list(b"def ")], device=next(model.parameters()).device)
        model.eval()
        with torch.no_grad():
            for _ in range(160):
                window = written[:, -context:]
                padded = F.pad(window, (0, context - window.shape[1]))
                score = model(padded)[0, window.shape[1] - 1].float()
                written = torch.cat([written, score.argmax().view(1, 1)], dim=1)
        print(bytes(written[0].tolist()).decode(errors="replace"))
