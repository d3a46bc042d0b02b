"""The built-in strategies, a package for each framework; found through the entry points `dtrain.strategies`."""
