"""A task that is not the same after a restart: what a drill must find."""

import os

from tiny import Tiny


class Forgetful(Tiny):
    """Its loss depends on the number of the attempt."""

    def loss(self, model, batch):
        return super().loss(model, batch) * (1.0 if os.environ["DTRAIN_ATTEMPT"] == "1" else 1.001)


class ForgetfulRank(Tiny):
    """The same on rank 1 alone."""

    def loss(self, model, batch):
        first = os.environ["DTRAIN_ATTEMPT"] == "1" or os.environ["DTRAIN_RANK"] == "0"
        return super().loss(model, batch) * (1.0 if first else 1.001)
