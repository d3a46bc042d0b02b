"""Runtimes: what runs each form, without dtrain. Runs where the model is verified and, copied, where it is served."""
