"""What a `function:` gets: for people with a training loop of their own who want the launcher's checkpoints and recovery."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from dtrain.api.strategy import TrainingBackend
from dtrain.data.sampler import Sampler, fetch, length, step_seed

if TYPE_CHECKING:
    from dtrain.worker.trainer import Trainer


class Context:
    """`train(context)`: prepare a model, iterate batches, report steps.

    ::

        def train(context):
            model, optimizer = context.prepare(build_model, build_optimizer)
            for batch in context.batches(data):
                loss = loss_of(model, batch)
                optimizer.zero_grad(); loss.backward(); optimizer.step()
                context.report(loss=loss)

    A step that was begun is done when the loop asks for the next batch: then it enters the ledger, and a checkpoint
    is made where one is due. The iteration ends early where the run is asked to stop; return then.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._values: dict[str, float] = {}
        place = trainer.joining.place
        self.params: dict[str, Any] = trainer.joining.job.params
        self.rank = place.rank
        self.world_size = place.world_size
        self.session: TrainingBackend = trainer.session

    def prepare(self, model: Callable[[], Any], optimizer: Callable[[Any], Any]) -> tuple[Any, Any]:
        """Collective, once. Build and wrap model and optimizer for the strategy, and load the checkpoint if the run goes
        on from one. Both arguments are functions, since strategies that shard the model must build it themselves."""
        built = self.session.build(SimpleNamespace(model=model, optimizer=optimizer), self._trainer.train)
        if self._trainer.checkpoint:
            self.session.load(self._trainer.checkpoint)
        return built

    def batches(self, data: Any) -> Iterator[Any]:
        """This worker's part of each remaining global batch, in the order that the run's seed gives."""
        trainer = self._trainer
        sampler = Sampler(length(data), trainer.train)
        trainer.announce(sampler)
        trainer.link.listen()
        ledger, first_shard = trainer.open_ledger(), trainer.shards.start
        for step, begin, indices in trainer.upcoming(sampler):
            yield self.session.feed(fetch(data, indices), step_seed(trainer.train.seed, step, first_shard))
            ledger.add(step, begin, indices)
            self._flush(step + 1, sampler.total_steps)
            trainer.after_step(step + 1, sampler.total_steps)

    def report(self, **values: Any) -> None:
        """Named numbers of the step under way (loss, accuracy); their mean over ranks is shown every `log_every` steps."""
        self._values = {name: float(value) for name, value in values.items()}

    def _flush(self, done: int, total: int) -> None:
        trainer = self._trainer
        if self._values and trainer.due(done, total, trainer.train.log_every):
            values = self.session.mean(self._values)
            if self.rank == 0:
                trainer.link.say("metrics", step=done, values=values, samples_per_second=None)
