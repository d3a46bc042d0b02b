"""One training step under PyTorch: the backend, DDP and FSDP, optimizers, batches and losses."""
