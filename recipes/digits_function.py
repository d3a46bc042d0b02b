"""The digits once more, with a training loop of your own: dtrain gives the batches, the checkpoints and the recovery."""

from digits_torch import Digits


def train(context):
    digits = Digits(**context.params)
    model, optimizer = context.prepare(digits.model, digits.optimizer)
    for batch in context.batches(digits.data("train")):
        loss = digits.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        context.report(loss=loss)
