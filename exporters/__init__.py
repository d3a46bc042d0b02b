"""Exporters: a file for each form that a trained model can have. Runs in processes of `dtrain export`; see README.md."""
