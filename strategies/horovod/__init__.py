"""Horovod for PyTorch and TensorFlow, its launcher's environment, and its build."""
