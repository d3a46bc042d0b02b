"""Measurements of a PyTorch training: phases, learning rates, profiles, operations, the network."""
