# mypy: ignore-errors
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.a(x)


class Counter:
    def __init__(self):
        self.seen = {"steps": 0, "names": ("a", b"b"), "odd": {1, 2}}

    def state_dict(self):
        return {"seen": self.seen, "sum": torch.tensor([float(self.seen["steps"])])}

    def load_state_dict(self, state):
        self.seen = state["seen"]
        assert state["sum"].item() == self.seen["steps"]


def train(context):
    torch.manual_seed(3)
    model, optimizer = context.prepare(lambda: Net(), lambda m: torch.optim.AdamW(m.parameters(), lr=0.1))
    counter = Counter()
    context.register("counter", counter)
    for step in range(context.step, context.total_steps):
        loss = model(torch.ones(1, 2)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        counter.seen["steps"] += 1
        print("step", step, counter.seen["steps"], flush=True)
        context.report(loss=float(loss))
