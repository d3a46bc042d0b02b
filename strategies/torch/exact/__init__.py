"""The same bits at every number of workers: gradients summed in one fixed binary tree."""
