"""A plain Horovod script: it was written for horovodrun and knows nothing of dtrain."""

import horovod.torch as hvd
import torch
from torch import nn

hvd.init()
torch.manual_seed(0)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())

generator = torch.Generator().manual_seed(hvd.rank())
truth = torch.tensor([[1.0, -2.0, 3.0, -4.0]])
for _ in range(100):
    inputs = torch.randn(32, 4, generator=generator)
    loss = (model(inputs) - inputs @ truth.T).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
if hvd.rank() == 0:
    print(hvd.size(), "workers learned", [round(value, 3) for value in model.weight[0].tolist()])
hvd.shutdown()
