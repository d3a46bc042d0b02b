"""The built-in clusters; found through the entry points `dtrain.clusters`."""
