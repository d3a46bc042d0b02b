"""The built-in strategies, one file each; found through the entry points `dtrain.strategies`."""
