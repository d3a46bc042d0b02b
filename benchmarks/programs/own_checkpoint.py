"""The checkpoint of a DDP loop that keeps its own: one file, replaced by a rename."""

import os

import torch


def resumed(folder, model, optimizer):
    """Load the checkpoint in a folder, if there is one; the step to go on from."""
    path = folder / "state.pt"
    if not path.exists():
        return 0
    step, weights, moments = torch.load(path)
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    return step


def save(folder, step, model, optimizer):
    """Replace it."""
    torch.save((step, model.state_dict(), optimizer.state_dict()), folder / "aside.pt")
    os.replace(folder / "aside.pt", folder / "state.pt")
