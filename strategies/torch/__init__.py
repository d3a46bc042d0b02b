"""The PyTorch strategies and the training backend that they share."""
