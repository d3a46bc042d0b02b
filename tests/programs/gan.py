"""Two models that are trained against each other, an average of one of them, and a teacher that is not trained."""

import copy
import time

import torch
from torch import nn
from torch.nn import functional as F


def network(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, outputs))


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def with_schedule(model):
    optimizer = adam(model)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.5)


def real(samples=256):
    return torch.randn(samples, 4, generator=torch.Generator().manual_seed(5)) * 2 + 1


class Average:
    """Of a model's weights over the steps; its state has keys that are no strings, and a number."""

    def __init__(self, model):
        self.model, self.steps = model, 0
        self.weights = {n: p.detach().clone() for n, p in enumerate(model.parameters())}

    def update(self):
        self.steps += 1
        for number, parameter in enumerate(self.model.parameters()):
            self.weights[number].lerp_(parameter.detach(), 0.1)

    def state_dict(self):
        return {"steps": self.steps, "weights": self.weights}

    def load_state_dict(self, state):
        self.steps, self.weights = state["steps"], copy.copy(state["weights"])


class Gan:
    """As a task whose backward passes are its own."""

    def __init__(self, pause=0.0):
        self.pause = pause

    def models(self):
        return {"g": network(3, 4), "d": network(4, 1)}

    def optimizers(self, models):
        assert not torch.equal(models["g"][0].bias, models["d"][0].bias), "both began alike"
        return {"g": with_schedule(models["g"]), "d": adam(models["d"])}

    def data(self, split):
        return real() if split == "train" else None

    def train_step(self, step):
        time.sleep(self.pause)
        fake = step.models["g"](torch.randn(len(step.batch), 3))
        d = step.models["d"]
        d_loss = F.softplus(-d(step.batch)).mean() + F.softplus(d(fake.detach())).mean()
        step.minimize(d_loss, "d")
        g_loss = F.softplus(-d(fake)).mean()
        step.minimize(g_loss, "g")
        return {"loss": g_loss, "d_loss": d_loss}

    def finish(self, models):
        print("finished", {name: type(model).__name__ for name, model in models.items()})


class Unsplit(Gan):
    """Gives the same data for every split, as if there were but one."""

    def data(self, split):
        return real()


def train(context):
    """The same as a function; parameters make it leave its loop in one way or another."""
    params = context.params
    made = context.prepare(
        g=(lambda: network(3, 4), adam), d=(lambda: network(4, 1), adam), teacher=lambda: nn.Linear(4, 4)
    )
    (g, g_optimizer), (d, d_optimizer), (teacher, none) = made["g"], made["d"], made["teacher"]
    assert none is None
    average = context.register(params.get("name", "average"), Average(teacher if params.get("sharded") else g))
    for batch in context.batches(real()):
        time.sleep(params.get("pause", 0.0))
        fake = g(torch.randn(len(batch), 3))
        d_optimizer.zero_grad()
        d_loss = F.softplus(-d(batch)).mean() + F.softplus(d(fake.detach())).mean()
        d_loss.backward()
        d_optimizer.step()
        g_optimizer.zero_grad()
        g_loss = F.softplus(-d(fake)).mean() + 0 * teacher(fake).sum()
        g_loss.backward()
        g_optimizer.step()
        average.update()
        context.report(loss=g_loss, d_loss=d_loss, steps=average.steps)
        if context.step + 1 == params.get("break_at"):
            break
        if context.step + 1 == params.get("stop_at") and context.rank == params.get("stop_rank", context.rank):
            context.stop("it learned enough")
    if context.rank == 0:
        print("average", average.steps, sum(float(weight.double().sum()) for weight in average.weights.values()))


def twice(context):
    """Wrong: two calls where one is needed."""
    context.prepare(lambda: network(3, 4), adam)
    context.prepare(lambda: network(4, 1), adam)


def own_loop(context):
    """A loop with data of its own: `report` counts the steps."""
    model, optimizer = context.prepare(lambda: nn.Linear(4, 1), adam)
    data = real()
    for step in range(context.step, context.total_steps):
        time.sleep(context.params.get("pause", 0.0))
        loss = model(data[step : step + 8]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        context.report(loss=loss)
        if step + 1 == context.params.get("break_at") and context.rank == context.params.get(
            "break_rank", context.rank
        ):
            return


class Augmented:
    """A task whose samples are changed at random, with all three global generators."""

    def __init__(self, pause=0.0):
        self.pause = pause

    def model(self):
        return nn.Linear(4, 1)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def data(self, split):
        return Noisy() if split == "train" else None

    def loss(self, model, batch):
        import numpy as np

        time.sleep(self.pause)
        return (model(batch) - float(np.random.rand())).square().mean()


class Noisy(torch.utils.data.Dataset):
    """The numbers of `real`, disturbed."""

    def __len__(self):
        return 256

    def __getitem__(self, index):
        import random

        import numpy as np

        noise = torch.rand(4) + random.random() + torch.as_tensor(np.random.rand(4), dtype=torch.float32)
        return real()[index] + noise


class Tied(nn.Module):
    """An embedding and an output layer with one weight, as in GPT-2."""

    def __init__(self):
        super().__init__()
        self.embedding, self.middle, self.head = nn.Embedding(64, 16), nn.Linear(16, 16), nn.Linear(16, 64, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words):
        return self.head(torch.tanh(self.middle(self.embedding(words))))


class TiedTask:
    """Predicts each word from itself."""

    def __init__(self, pause=0.0):
        self.pause = pause

    def model(self):
        return Tied()

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    def data(self, split):
        return torch.arange(640) % 64 if split == "train" else None

    def loss(self, model, batch):
        time.sleep(self.pause)
        return F.cross_entropy(model(batch), batch)

    def finish(self, model):
        assert model.head.weight is model.embedding.weight
        print("finished", type(model.embedding.weight).__name__, tuple(model.embedding.weight.shape))


class Unused(TiedTask):
    """A branch that takes part in no step."""

    def model(self):
        model = Tied()
        model.unused = nn.Linear(3, 3)
        return model
