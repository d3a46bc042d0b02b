"""Loops of one's own: a program in the form of a function or of a script, and the training by hand beside each program."""

from __future__ import annotations

from grammar import STEPS, Choices

TRAINED = "[one for group in optimizer.param_groups for one in group['params']]"
CLIP = "nn.utils.clip_grad_norm_({}, 0.5)"


SCRIPT = """\
def main():
    watch = Watch(**json.loads(os.environ["WATCH"]))
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(3)
    plain = Net()
    model = nn.parallel.DistributedDataParallel(plain{unused})
    optimizer = make_optimizer(plain)
    {kept}
    everything = {{{everything}}}
    saved, begin = watch.folder / "state.pt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=False)
        begin = state.pop("step")
        for name, one in everything.items():
            one.load_state_dict(state[name])
    watch.begins(begin)
    for number in range(begin, {steps}):
        torch.manual_seed(number)
        ids = [one % SIZE for one in range(number * {batch}, (number + 1) * {batch})]
        mine = ids[rank * {batch} // world : (rank + 1) * {batch} // world]
        batch = torch.from_numpy(X[mine]), torch.from_numpy(Y[mine])
        {step}
        if (number + 1) % {every} == 0 or number + 1 == {steps}:
            if rank == 0:
                state = {{name: one.state_dict() for name, one in everything.items()}}
                torch.save(state | {{"step": number + 1}}, watch.folder / "state.tmp")
                os.replace(watch.folder / "state.tmp", saved)
            torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""
"""What torchrun's users write: the loop, each rank's part of the samples and the checkpoints are the script's own."""


def has_modes(chosen: Choices) -> bool:
    return chosen["optimizer"] == "schedule-free" or chosen["package"].startswith("schedulefree")


def numbers_of(chosen: Choices, step: str) -> str:
    """The expression of a dict of metrics."""
    size = "float(np.abs(np.asarray(batch[0])).mean())"
    odd = f"{step} % 2" if step else "round(100 * float(np.asarray(batch[0])[:, -1].sum())) % 2"
    return {
        "none": "{}", "every": f"{{'size': {size}}}", "odd": f"{{'size': {size}}} if {odd} else {{}}",
        "missing": f"{{'size': {size}}} if round(100 * float(np.asarray(batch[0])[0, -1])) % 3 else {{'other': 1.0}}",
        "nan": f"{{'size': float('nan') if {odd} else {size}}}",
    }[chosen["metrics"]]  # fmt: skip


def by_step(chosen: Choices, number: str) -> list[str]:
    """What the author's code does to the optimizer at the beginning of a step."""
    lines = []
    if chosen["place"] == "hand":
        lines += ["for group in optimizer.param_groups:", f"    group['lr'] = 0.02 / (1 + 0.2 * {number})"]
    if chosen["place"] == "decay":
        lines += ["for group in optimizer.param_groups:", "    group['lr'] *= 0.95"]
    if chosen["groups"] == "added":
        lines += [
            f"if {number} == 4:",
            "    late = [one for name, one in model.named_parameters() if one.requires_grad and one.ndim < 2 and 'untouched' not in name]",
            "    optimizer.add_param_group({'params': late, 'lr': 0.005})",
        ]  # fmt: skip
    return lines


def _kept_things(chosen: Choices, wrap: str) -> list[str]:
    lines = []
    if chosen["place"] == "scheduler":
        lines.append(f"schedule = {wrap.format('schedule', 'make_schedule(optimizer)')}")
    if chosen["average"] != "no":
        made = "Average(plain)" if chosen["average"] == "ema" else "AveragedModel(plain)"
        lines += ["plain = getattr(model, 'module', model)", f"average = {wrap.format('average', made)}"]
    if chosen["registered"] != "nothing":
        lines.append(f"kept = {wrap.format('kept', 'Kept()')}")
    return lines


def _after_step(chosen: Choices, number: str) -> list[str]:
    lines = []
    if chosen["place"] == "scheduler":
        # What a schedule depends on must be the same on all ranks, and a loss is not.
        lines.append(f"schedule.step({f'1.0 + {number} % 3' if chosen['schedule'] == 'plateau' else ''})")
    if chosen["average"] != "no":
        lines.append("average.update_parameters(plain)")
    if chosen["registered"] != "nothing":
        lines.append("kept.steps += 1")
    return lines


def _stepping(chosen: Choices, number: str, watched: str) -> list[str]:
    """Gradients and the step of the optimizer, in a loop of one's own."""
    loss = "loss_of(model, batch)"
    if chosen["registered"] == "generator":
        loss += " + 0.01 * torch.rand((), generator=kept.generator).double() * sum((one ** 2).sum().real for one in model.parameters())"
    if chosen["optimizer"] == "LBFGS":
        return [*([watched] if watched else []), "", "def closure():", "    optimizer.zero_grad()", f"    loss = {loss}",
                "    loss.backward()", "    return loss", "", "loss = optimizer.step(closure)"]  # fmt: skip
    lines = [watched] if watched else []
    clip = [_clip(chosen)] if chosen["clip"] == "yes" else []
    if chosen["passes"] == "halves":
        lines += ["optimizer.zero_grad()", "half = len(batch[0]) // 2 or 1", "whole, loss = batch, 0.0",
                  "for batch in [tuple(part[:half] for part in whole), tuple(part[half:] for part in whole)]:",
                  f"    part = {loss} * (len(batch[0]) / len(whole[0]))", "    part.backward()", "    loss += part.detach()", "batch = whole"]  # fmt: skip
        return [*lines, *clip, "optimizer.step()"]
    if chosen["passes"] == "across":
        step = [
            f"if {number} % 2 == 1:",
            *(f"    {line}" for line in [*clip, "optimizer.step()", "optimizer.zero_grad()"]),
        ]
        return [*lines, f"loss = {loss}", "(loss / 2).backward()", *step]
    return [*lines, "optimizer.zero_grad()", f"loss = {loss}", "loss.backward()", *clip, "optimizer.step()"]


def _clip(chosen: Choices) -> str:
    """Of a loop of one's own under DDP: with gradients that no optimizer uses, and that add up, since nobody forgets them."""
    every = chosen["form"] == "function" and chosen["strategy"] == "ddp"
    return CLIP.format("model.parameters()" if every else TRAINED)


def function(chosen: Choices) -> str:
    lines = ["watch = Watch(**context.params)", "model, optimizer = context.prepare(Net, make_optimizer)",
             *_kept_things(chosen, "context.register('{}', {})")]  # fmt: skip
    if has_modes(chosen):
        lines.append("optimizer.train()")
    lines.append("for batch in context.batches(make_data()):")
    inner = [*by_step(chosen, "context.step"),
             *_stepping(chosen, "context.step", "watch.forward(batch[0], optimizer, training=model.training)")]  # fmt: skip
    numbers = numbers_of(chosen, "context.step")
    inner.append(f"context.report(loss=loss, **({numbers}))" if numbers != "{}" else "context.report(loss=loss)")
    inner += _after_step(chosen, "context.step")
    lines += [f"    {line}" for line in inner]
    if has_modes(chosen):
        lines.append("optimizer.eval()")
    return "def train(context):\n    " + "\n    ".join(lines) + "\n"


def script(chosen: Choices) -> str:
    """Return a script that goes on from the file that it has saved."""
    kept = [line for line in _kept_things(chosen, "{1}") if not line.startswith("plain = ")]
    names = ["plain", "optimizer", *(line.partition(" = ")[0] for line in kept)]
    watched = "watch.forward(batch[0], optimizer, training=model.training)"
    step = [*by_step(chosen, "number"), *_stepping(chosen, "number", watched), *_after_step(chosen, "number")]
    return SCRIPT.format(
        unused=", find_unused_parameters=True" if chosen["extra"] == "unused" else "",
        kept="\n    ".join(kept), everything=", ".join(f"'{name}': {name}" for name in names),
        step="\n        ".join(step), steps=STEPS, batch=chosen["batch"], every=chosen["every"],
    )  # fmt: skip


def by_hand(chosen: Choices) -> str:
    lines = ["torch.manual_seed(3)", "model = Net()", "optimizer = make_optimizer(model)", *_kept_things(chosen, "{1}")]
    modes = has_modes(chosen)
    if modes:
        lines.append("optimizer.train()")
    lines.append("for number, batch in enumerate(batches):")
    inner = by_step(chosen, "number")
    if chosen["place"] == "factor":
        inner += [
            "for group, base in zip(optimizer.param_groups, bases):",
            "    group['lr'] = base * min(1.0, (number + 1) / 5)",
        ]
        lines.insert(-1, "bases = [group['lr'] for group in optimizer.param_groups]")
    clipped = chosen["clip"] == "yes" and chosen["form"] != "function"
    # Parts of a batch do not weigh what they have samples of.
    whole = Choices(dict(chosen.of) | {"passes": "one"}) if chosen["loss"] == "masked" else chosen
    stepping = _stepping(whole, "number", "")
    if clipped and "nn.utils" not in "".join(stepping):
        stepping.insert(-1, _clip(chosen))
    inner += [
        "rates = [float(group['lr']) for group in optimizer.param_groups]",
        *stepping,
        *_after_step(chosen, "number"),
        "yield float(loss), rates, None",
    ]
    lines += [f"    {line}" for line in inner]
    if modes:
        lines.append("optimizer.eval()")
    lines.append("yield 0.0, [], model")
    return (
        'def by_hand(batches):\n    """The same training in a loop without dtrain."""\n    '
        + "\n    ".join(lines)
        + "\n"
    )
