"""The training loop of a `function:` for a task's methods."""


def train(context, task):
    model, optimizer = context.prepare(task.model, task.optimizer)
    for batch in context.batches(task.data("train")):
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        context.report(loss=loss)
    context.evaluate(task.metrics, task.data("eval"))
