"""What a PyTorch training reports of itself: phases, learning rates, profiles, operations, the network."""
