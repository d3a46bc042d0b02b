"""State of a PyTorch training on its way to disk, to memory and to other programs."""

from ... import torch_values as torch_values
