"""A causal language model of Hugging Face from a configuration, as a task; run as a program, the same loop by hand."""

import json
import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel


class Text:
    """The source of a module of Python's own, in pieces of 32 bytes."""

    def model(self):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=256, n_positions=32, n_embd=32, n_layer=2, n_head=2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, loss_type="ForCausalLM",
        )  # fmt: skip
        return GPT2LMHeadModel(config)

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=1e-3)

    def data(self, split):
        text = torch.frombuffer(bytearray(json.__doc__.encode()), dtype=torch.uint8).long()
        pieces = text[: len(text) // 32 * 32].reshape(-1, 32)
        return {"input_ids": pieces, "labels": pieces}

    def loss(self, model, batch):
        return model(**batch)


def main(steps, size):
    task = Text()
    model = task.model()
    optimizer = task.optimizer(model)
    data = task.data("train")
    losses = []
    for step in range(steps):
        begin = step * size % (len(data["labels"]) // size * size)
        loss = model(**{name: value[begin : begin + size] for name, value in data.items()}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print("RESULT", json.dumps({"losses": losses}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
