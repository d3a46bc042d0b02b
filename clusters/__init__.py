"""The built-in clusters, one file each; found through the entry points `dtrain.clusters`."""
