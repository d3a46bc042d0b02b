"""The same bits at every number of workers (`train.exact`): the gradients of all shards are summed in one fixed binary tree.

A worker adds the gradients of its own shards in the order of a binary counter, which needs log2(its shards) buffers more; the workers
add theirs in the same tree (`exchange`). Numbers of workers and shards are powers of two, so that every worker has a whole
subtree; a sum that was -0.0 becomes 0.0, whatever added it. The idea is EasyScale's (Li et al., SC'23), for gradients of equal shards.

Importing this module imports no framework.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dtrain.api.strategy import WorkerContext
from dtrain.common.errors import UserError

from ..watch.operations import hidden
from .exchange import Exchange, exchange_for, scaled, tree_sum

CHECKSUMS = 1 << 32
LATE = 2
"""The slices of a bucket are gathered when so many buckets more are on their way: by then they are there."""


class PartialSums:
    """Gradients of one worker's shards, added in the order of a binary tree: a stack of sums, as in a binary counter."""

    def __init__(self) -> None:
        self._stack: list[tuple[int, dict[int, Any]]] = []
        """(Number of shards, parameter → sum of their gradients), the largest first."""

    def push(self, gradients: dict[int, Any]) -> None:
        """The gradients of one more shard by some key; the tensors are changed."""
        size = 1
        while self._stack and self._stack[-1][0] == size:
            _add(gradients, self._stack.pop()[1])
            size *= 2
        self._stack.append((size, gradients))

    def add_to(self, gradients: dict[int, Any]) -> None:
        """Add what was pushed to the gradients of the last shard, in place, those that it has."""
        for _, sums in reversed(self._stack):
            _add(gradients, {key: value for key, value in sums.items() if key in gradients})

    def last(self, gradients: dict[int, Any]) -> dict[int, Any]:
        """The sum of everything and the gradients of the last shard, which are changed; nothing is kept."""
        for _, sums in reversed(self._stack):
            _add(gradients, sums)
        self.clear()
        return gradients

    def clear(self) -> None:
        """Begin a new step."""
        self._stack.clear()


def _add(sums: dict[int, Any], more: dict[int, Any]) -> None:
    """Add in place; a gradient that only one side has stays as it is."""
    import torch

    both = [key for key in sums if key in more]
    if both:
        torch._foreach_add_([sums[key] for key in both], [more[key] for key in both])
    sums.update({key: value for key, value in more.items() if key not in sums})


def local(tensor: Any) -> Any:
    """The part of a DTensor that is on this worker, or the tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def of_job(context: WorkerContext) -> ExactSums | None:
    """Return the object that sums the gradients if the recipe asks for the same bits at every size."""
    train = context.job.train
    rank_info = context.rank_info
    return ExactSums(train.shards or 1, rank_info.rank, rank_info.world_size) if train.exact else None


class ExactSums:
    """The gradients of one worker on their way to the mean over all shards."""

    def __init__(self, shards: int, rank: int, world_size: int) -> None:
        self.scale = 1.0 / shards
        self._rank = rank
        self._world_size = world_size
        self.last_pass = False
        self._own = PartialSums()
        self._known: dict[tuple[int, int], Exchange] = {}
        """(Number, values) → what is kept for a bucket of DDP."""
        self._buckets: list[Exchange] = []
        """Buckets of the current step."""
        self._checksums: list[Any] = []
        """Checksums of the gradients of each pass of the newest step."""
        self._kept: list[Any] = []
        """Copies of the model's buffers as the first of this worker's shards left them."""

    def begin_pass(self, *, first: bool, last: bool) -> None:
        """Begin one backward pass, the first or the last of a step."""
        if first:
            self._checksums = []
        self._checksums.append(0)
        self.last_pass = last

    def see(self, gradients: Iterable[Any]) -> None:
        """Gradients of the pass under way, before they are added to any other."""
        for gradient in gradients if self._checksums else ():
            self._checksums[-1] = self._checksums[-1] + bits(gradient)

    def checksums(self) -> list[int]:
        """Return the checksums of each pass of the newest step; waits for the device."""
        return [int(checksum) % CHECKSUMS for checksum in self._checksums]

    def end_pass(self, parameters: Iterable[Any], *, reduced: bool) -> None:
        """End one backward pass: keep its gradients, or after the last one put the mean in their place; `reduced`:
        something else has summed them (a reduce-scatter of `TreeReduceScatter`)."""
        last, self.last_pass = self.last_pass, False
        if reduced:
            return
        everyone = {id(parameter): parameter for parameter in parameters}
        with_gradient = {key: parameter for key, parameter in everyone.items() if parameter.grad is not None}
        if self._buckets:
            self._finish_buckets()
            return
        gradients = {key: local(parameter.grad) for key, parameter in with_gradient.items()}
        self.see(gradients.values())
        if not last:
            for parameter in with_gradient.values():  # the next pass makes new ones: these are kept without a copy
                parameter.grad = None
            self._own.push(gradients)
            return
        for key, total in self._own.last(gradients).items():
            scaled(total, self.scale)
            if key not in with_gradient:  # the last shard left it out
                everyone[key].grad = total

    def keep_buffers(self, buffers: Callable[[], Sequence[Any]], *, first: bool, last: bool) -> None:
        """Give every rank the buffers of rank 0 after a pass: buffers (batch norm's running statistics) change with
        the first shard of a worker alone, and rank 0 has the first of all."""
        if first and not last:
            self._kept = [buffer.detach().clone() for buffer in buffers()]
        elif last and not first and self._kept:
            for buffer, kept in zip(buffers(), self._kept, strict=True):
                buffer.detach().copy_(kept)
            self._kept = []

    @hidden()  # DDP lays its buckets out anew after its first step
    def hook(self, bucket: Any) -> Any:
        """A communication hook of DDP (`register_comm_hook`): sends a bucket while the backward pass goes on."""
        import torch

        buffer = bucket.buffer()
        future: Any = torch.futures.Future()
        future.set_result(buffer)
        if not self.last_pass:  # of nobody's: the user's function did not say that it is a pass
            return future
        self.see([buffer])
        views = dict(zip(map(id, bucket.parameters()), bucket.gradients(), strict=True))
        self._own.add_to(views)
        key = (bucket.index(), buffer.numel())
        if key not in self._known:
            self._known[key] = exchange_for(buffer, bucket.index(), self._rank, self._world_size)
        self._known[key].send(buffer)
        self._buckets.append(self._known[key])
        if len(self._buckets) > LATE:
            self._buckets[-1 - LATE].gather(self.scale)
        return future

    @hidden()
    def _finish_buckets(self) -> None:
        buckets, self._buckets = self._buckets, []
        for bucket in buckets:
            bucket.gather(self.scale)
        for bucket in buckets:
            bucket.finish()
        self._own.clear()


def bits(gradient: Any) -> Any:
    """The sum of a gradient's bits, taken as words of at most 32, modulo 2^32; on a device a tensor of which that is still to be
    taken."""
    import torch

    kind = torch.int16 if gradient.element_size() == 2 else torch.int32
    words = gradient.detach().contiguous().reshape(-1).view(kind)
    if words.device.type != "cpu":
        return words.sum(dtype=torch.int64)
    values = words.numpy()
    # In 32 bits the processor adds whole vectors; in 64 it would take six times as long.
    return int(values.view(f"u{values.itemsize}").sum(dtype="u4"))


def reduce_scatter(sums: ExactSums, replicas: Any) -> Any:
    """A `TreeReduceScatter` for one FSDP module; `replicas`: the group of HSDP's replicas, or None."""
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter

    class TreeReduceScatter(ReduceScatter):  # type: ignore[misc]
        """Keeps the gradients of all passes but the last whole on this worker, and then reduces their sum in the tree."""

        def __init__(self) -> None:
            self._own = PartialSums()
            self._received: Any = None

        def allocate(self, size: Sequence[Any], *, dtype: Any, device: Any) -> Any:
            return torch.empty(*size, dtype=dtype, device=device)

        def __call__(self, output_tensor: Any, input_tensor: Any, group: Any, op: Any, async_op: bool = False) -> None:  # noqa: FBT001, FBT002
            sums.see([input_tensor])
            if not sums.last_pass:
                self._own.push({0: input_tensor.clone()})
                output_tensor.zero_()
                return
            whole = self._own.last({0: input_tensor})[0]
            if self._received is None:
                self._received = torch.empty_like(whole)
            dist.all_to_all_single(self._received, whole, group=group)
            total = tree_sum(self._received.view(group.size(), -1))
            if replicas is not None:
                total = self._over_replicas(total)
            output_tensor.copy_(scaled(total, sums.scale))

        def _over_replicas(self, total: Any) -> Any:
            """FSDP averages over the replicas afterwards: of one that has the whole sum times their number, and of zeros."""
            count = replicas.size()
            parts = total.new_empty(count * total.numel())
            dist.all_gather_into_tensor(parts, total.contiguous(), group=replicas)
            return tree_sum(parts.view(count, -1)) * count if replicas.rank() == 0 else torch.zeros_like(total)

    return TreeReduceScatter()


def clip(parameters: Iterable[Any], most: float, group: Any = None) -> Any:
    """As `clip_grad_norm_`, with a norm whose bits do not depend on who holds which rows: squares are added row by row, and then
    in float64 over all rows; `group` are the ranks that a parameter's rows are spread over. Returns the norm."""
    import torch
    import torch.distributed as dist

    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    rows = torch.cat([_all_rows(gradient) for gradient in gradients])
    if group is not None:
        dist.all_reduce(rows, group=group)  # one rank has each row, the others zeros: no order matters
    norm = rows.sum().sqrt()
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([local(gradient) for gradient in gradients], factor.to(torch.float32))
    return norm


def _all_rows(gradient: Any) -> Any:
    """The sum of squares of each row of a gradient, 0 for the rows of other ranks; float64, of the whole gradient's rows."""

    mine = local(gradient)
    matrix = mine.detach().flatten(1) if mine.ndim > 1 else mine.detach().reshape(-1, 1)
    squares = _row_sums_on_host(matrix) if matrix.device.type == "cpu" else _row_sums(matrix)
    if mine is gradient:
        return squares
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(gradient.shape, gradient.device_mesh, gradient.placements)
    whole = squares.new_zeros(gradient.shape[0] if gradient.ndim else 1)
    begin = offset[0] if offset else 0
    whole[begin : begin + squares.shape[0]] = squares
    return whole


def _row_sums(matrix: Any) -> Any:
    """Halves of a row added to each other, until one value is left."""
    import torch

    squares = matrix.to(torch.float64).square()
    while squares.shape[1] > 1:
        half = squares.shape[1] // 2
        added = squares[:, :half] + squares[:, half : 2 * half]
        squares = torch.cat([added, squares[:, 2 * half :]], dim=1) if squares.shape[1] % 2 else added
    return squares[:, 0]


def _row_sums_on_host(matrix: Any) -> Any:
    """Sum each row that lies together by itself in single precision, whatever the other rows and the threads are."""
    import torch

    if matrix.shape[1] == 1:
        return matrix[:, 0].to(torch.float64).square()
    norms = torch.linalg.vector_norm(matrix.contiguous(), dim=1, dtype=torch.float32)
    return norms.to(torch.float64).square()


def refuse(models: Iterable[Any], name: str) -> None:
    """Raise `UserError` for a layer whose output depends on how many workers there are."""
    import torch

    for model in models:
        for path, module in model.named_modules():
            if isinstance(module, torch.nn.SyncBatchNorm):
                raise UserError(
                    f"{name}.model: {path} is a SyncBatchNorm, whose statistics are of all workers' samples: with train.exact, use "
                    "BatchNorm, whose statistics are of one shard"
                )


def settings(device: Any, threads: int) -> None:
    """Have torch compute the same bits again; an operation that cannot raises `RuntimeError`, which names it."""
    import os

    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # noqa: FBT003
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if device.type == "cpu":
        torch.set_num_threads(threads)


def fingerprint(device: Any) -> str:
    """Digest of a small computation: two processors, or two builds of torch, whose kernels add in another order differ in it."""
    import torch
    from torch.nn import functional

    from dtrain.common.files import digest

    values = ((torch.arange(64 * 96, dtype=torch.int64) * 2654435761 % 10007).to(torch.float32) / 10007 - 0.5).to(
        device
    )
    matrix = values.reshape(64, 96)
    image = values[: 4 * 3 * 16 * 16].reshape(4, 3, 16, 16)
    kernel = values[: 8 * 3 * 3 * 3].reshape(8, 3, 3, 3)
    results = [
        matrix @ matrix.T, (matrix @ matrix.T).softmax(-1), matrix.exp().sum(0), matrix.tanh().mean(), functional.gelu(matrix),
        functional.conv2d(image, kernel), functional.layer_norm(matrix, (96,)), (matrix.square() + 1).rsqrt().log().sum(),
    ]  # fmt: skip
    flat = torch.cat([result.detach().reshape(-1) for result in results]).cpu()
    return str(digest(flat.numpy().tobytes()).hexdigest())[:16]
