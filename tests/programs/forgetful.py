"""A task that is not the same after a restart: what a drill must find."""

import os

from tiny import Tiny


class Forgetful(Tiny):
    """Its loss depends on the number of the attempt."""

    def loss(self, model, batch):
        return super().loss(model, batch) * (1.0 if os.environ["DTRAIN_ATTEMPT"] == "1" else 1.001)
