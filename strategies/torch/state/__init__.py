"""State of a PyTorch training on its way to disk, to memory and to other programs."""
