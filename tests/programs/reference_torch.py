"""The same training by hand: one process, whole global batches, no launcher. Prints the losses as JSON."""

import json
import sys

import torch
from tiny_mlp import Mlp

from dtrain.data.sampler import Sampler
from dtrain.job.job import Train

steps, batch, seed, clip = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
torch.manual_seed(seed)
task = Mlp()
model = task.model()
optimizer = task.optimizer(model)
inputs, targets = task.data("train")
sampler = Sampler(len(inputs), Train(steps=steps, global_batch=batch, shards=1, seed=seed))
losses = []
for step in range(steps):
    chosen = sampler.indices(step * batch, batch)
    loss = task.loss(model, (torch.as_tensor(inputs[chosen]), torch.as_tensor(targets[chosen])))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * task.schedule(step, steps)
    optimizer.step()
    losses.append(loss.item())
print(json.dumps(losses))
