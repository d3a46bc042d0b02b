"""A small convolutional network on samples that take time to fetch: as a task for dtrain's loop, and as the same loop by
hand with PyTorch's DataLoader."""

import io
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

SIZE, SAMPLES = 64, 4096


class Samples:
    """`decode`: compressed pictures that are unpacked and augmented (about 2 ms of CPU); `wait`: 5 ms of waiting."""

    def __init__(self, kind):
        self.kind = kind
        generator = np.random.default_rng(0)
        self.files = []
        for _ in range(16):
            file = io.BytesIO()
            picture = generator.integers(0, 255, (SIZE * 6, SIZE * 6), np.uint8)
            np.savez_compressed(file, picture=picture)
            self.files.append(file.getvalue())

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        if self.kind == "wait":
            time.sleep(0.005)
            picture = np.full((SIZE, SIZE), index % 7, np.float32)
        else:
            picture = np.load(io.BytesIO(self.files[index % 16]))["picture"]
            left, top = np.random.randint(0, SIZE * 5, 2)
            picture = picture[top : top + SIZE, left : left + SIZE].astype(np.float32) / 255
        return torch.from_numpy(picture)[None], index % 10


class Task:
    def __init__(self, kind):
        self.kind = kind

    def model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 8, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 15 * 15, 10))

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.01)

    def data(self, split):
        if split == "eval":
            return None
        if self.kind == "arrays":
            return np.zeros((SAMPLES, 1, SIZE, SIZE), np.float32), np.zeros(SAMPLES, np.int64)
        return Samples(self.kind)

    def loss(self, model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])


if __name__ == "__main__":
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

    kind, steps, batch, workers, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    dist.init_process_group("gloo")
    task = Task(kind)
    model = task.model()
    model = DistributedDataParallel(model)
    optimizer = task.optimizer(model)
    data = task.data("train")
    data = TensorDataset(*map(torch.as_tensor, data)) if isinstance(data, tuple) else data
    each = batch // dist.get_world_size()
    loader = DataLoader(
        data, each, sampler=DistributedSampler(data), num_workers=0 if kind == "arrays" else workers, drop_last=True
    )
    times = []
    while len(times) < steps:
        for inputs, targets in loader:
            loss = task.loss(model, (inputs, targets))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            times.append(time.time())
            if len(times) == steps:
                break
    if dist.get_rank() == 0:
        Path(out).write_text("\n".join(map(str, times)))
    dist.destroy_process_group()
