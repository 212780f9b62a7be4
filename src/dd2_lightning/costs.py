"""Count the floating-point operations and the memory of networks on shapes, without computing a number.

Modules on the meta device are run as *fake tensors*: every operation happens, with shapes and precisions instead of
values. So the counts are those of the code that trains, whatever the family, and hold for sizes that fit nowhere.
"""

import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from dd2_lightning import flow as flows
from dd2_lightning.models.codebook import nearest_code
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.models.layers import Cache
from dd2_lightning.models.truncation import draw
from dd2_lightning.sampling import Sampling

PRECISIONS = {"32": None, "32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Precisions of the trainer that are counted, and the type that autocast computes in."""

# the counter of torch knows the attention kernels of GPUs; this is the one that fake CPU tensors go through
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, out_shape=None, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}

USABLE = 0.9
"""Share of a GPU's memory that is planned with; the rest is for its runtime, communication and fragmentation."""

CPU_MEMORY = 4e9
"""Bytes that a batch may take on a CPU."""

LARGEST = 500
"""Samples that are drawn at a time, if they fit; more would not be faster."""

COUNTED_AT = (8, 16)
"""Batch sizes that are counted; with fewer samples something else than the activations can be the peak."""

WALK_SAMPLES = 16
"""Positions of a walk whose cost is counted, if it has more; the others lie between them on straight lines."""


class Cost(NamedTuple):
    """Cost of a loss."""

    flops: int  # of forward and backward pass; a multiplication and an addition are two
    saved: int  # bytes that autograd keeps between the two, parameters not counted
    peak: int  # largest number of bytes alive at once, beyond weights and gradients
    updated: int  # parameters that get a gradient


class Ledger(TorchDispatchMode):
    """Count the memory that operations allocate and free: bytes ``alive``, and the ``peak`` of these."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        before = {storage_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and storage_of(leaf) not in self._known | before:
                self._enter(leaf.untyped_storage())
        return out

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def storage_of(tensor: Tensor) -> int:
    """Key of the memory of a tensor."""
    return tensor.untyped_storage()._cdata


@contextmanager
def saved_bytes(module: nn.Module) -> Iterator[list[int]]:
    """Collect the sizes of what autograd saves, each memory once, parameters and buffers of ``module`` left out."""
    seen = {storage_of(tensor) for tensor in (*module.parameters(), *module.buffers())}
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if storage_of(tensor) not in seen:
            seen.add(storage_of(tensor))
            sizes.append(tensor.untyped_storage().nbytes())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


@contextmanager
def shapes_only(module: nn.Module) -> Iterator[None]:
    """Context in which ``module``, which may be on the meta device, and new tensors have shapes but no values."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        module.to_empty(device="cpu")
        yield


def count_flops() -> FlopCounterMode:
    """A context that counts floating-point operations, see its ``get_total_flops``."""
    return FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)


@contextmanager
def few_chunks(counter: FlopCounterMode) -> Iterator[list[int]]:
    """Run two chunks and the rest of every backward pass of a codebook's flow, since all chunks cost the same.

    It yields the operations of every chunk that is left out.
    """
    left_out: list[int] = []

    def two_and_the_rest(rows: int, size: int) -> Iterator[slice]:
        for chunk, start in enumerate(range(0, rows, size)):
            if chunk < 2 or start + size > rows:
                before = counter.get_total_flops()
                yield slice(start, min(start + size, rows))
                operations = counter.get_total_flops() - before
            else:
                left_out.append(operations)

    with patch.object(flows, "chunks", two_and_the_rest):
        yield left_out


def computing_in(precision: str | int | None, device: str = "cpu") -> AbstractContextManager:
    """The autocast of a trainer's precision, on a device; a ``ValueError`` for one that is not counted."""
    name = str(precision or "32-true")
    if name not in PRECISIONS:
        raise ValueError(f"precision {name} is not counted; these are: {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[name]
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype)


def loss_cost(module: nn.Module, trained: nn.Module, loss: Callable[[], Tensor], precision: Any = None) -> Cost:
    """Cost of a loss, which runs through ``module`` in a trainer's precision, and its gradient for ``trained``."""
    module.requires_grad_(False)
    trained.requires_grad_(True)
    updated: list[int] = []
    hooks = []
    for parameter in trained.parameters():
        parameter.grad = torch.zeros_like(parameter)  # there already, as in all but the first micro-batch
        hooks.append(parameter.register_post_accumulate_grad_hook(lambda p: updated.append(p.numel())))
    with Ledger() as ledger, count_flops() as counter, saved_bytes(module) as saved:
        with computing_in(precision):
            total = loss().mean()
        on_shapes = isinstance(total, FakeTensor)
        chunks: AbstractContextManager[list[int]] = few_chunks(counter) if on_shapes else nullcontext([])
        with chunks as left_out:
            total.backward()
    for hook in hooks:
        hook.remove()
    trained.zero_grad()
    return Cost(counter.get_total_flops() + sum(left_out), sum(saved), ledger.peak, sum(updated))


@torch.no_grad()
def sampling_flops(teacher: CodebookTeacher, guided: bool, precision: Any = None, pair_steps: int = 0) -> float:
    """Floating-point operations of one teacher sequence, drawn position by position with a key-value cache.

    If ``guided``, the null label goes along; ``pair_steps`` evaluate the flow of a token, where noise is integrated.
    """
    layout = teacher.layout
    N = layout.num_positions
    counted = sorted({round(i * (N - 1) / (WALK_SAMPLES - 1)) for i in range(WALK_SAMPLES)}) if N > 1 else [0]
    labels, q = torch.zeros(1, dtype=torch.long), teacher.prepare(torch.zeros(1, layout.length, dtype=torch.long))
    cache, costs = Cache(layout.length), dict[int, int]()
    with computing_in(precision):
        for k in counted:
            if k > cache.positions:  # features of the positions between
                teacher.backbone(q[:, : layout.offsets[k - 1]], labels, cache)
            with count_flops() as flops:
                features = teacher.backbone.next_position(q[:, : layout.offsets[k]], labels, cache)
                teacher.classifier(features, labels)
            costs[k] = flops.get_total_flops()
    total: float = sum(costs.values())
    for first, last in itertools.pairwise(counted):
        total += (last - first - 1) * (costs[first] + costs[last]) / 2
    return (2 if guided else 1) * total + (pair_steps * flow_flops(teacher) if pair_steps else 0)


def flow_flops(teacher: CodebookTeacher) -> int:
    """One evaluation of the flow at every token of a sequence."""
    n = teacher.layout.length
    flow = flows.CodebookFlow(teacher.codebook, torch.zeros(1, n, len(teacher.codebook)))
    return flops_of(lambda: flow.denoise(torch.zeros(1, n, 1, teacher.token_dim), torch.ones(1, n, 1)))


@torch.no_grad()
def sampling_peak(teacher: CodebookTeacher, size: int, sampling: Sampling | None = None, pairs: bool = False) -> int:
    """Bytes alive at once while ``size`` sequences are drawn, at the last position: all others are in the cache.

    With ``pairs`` noise is integrated instead.
    """
    layout, device = teacher.layout, teacher.codebook.device
    labels, last = torch.zeros(size, dtype=torch.long, device=device), layout.counts[-1]
    known = layout.offsets[max(0, layout.num_positions - 2)]
    with Ledger() as ledger:
        walk = teacher.walk(labels, sampling, torch.zeros(size, known, dtype=torch.long, device=device))
        flows_of_positions = iter(walk)
        if layout.num_positions > 1:
            next(flows_of_positions)
            walk.append(torch.zeros(size, layout.counts[-2], dtype=torch.long, device=device))
            ledger.peak = ledger.alive
        flow = next(flows_of_positions)
        if pairs:
            noise = torch.zeros(size, last, teacher.token_dim, device=device)
            x0 = flow.denoise(noise[:, :, None], torch.ones(size, last, 1, device=device))
            nearest_code(x0[:, :, 0], flow.codebook, flow.log_p)
        else:
            draw(flow, torch.zeros(size, last, device=device))
    return ledger.peak


def flops_of(function: Callable[[], Any]) -> int:
    """Floating-point operations of a function; a replayed CUDA graph has none that are counted."""
    with count_flops() as counter:
        function()
    return counter.get_total_flops()


def peak_of(function: Callable[[], Any]) -> int:
    """Bytes alive at once that a function allocates."""
    with Ledger() as ledger:
        function()
    return ledger.peak


ALWAYS_FITS = 16  # samples that are not worth the seconds of counting


def largest_batch(device: torch.device, samples: int, *peaks: Callable[[int], int]) -> int:
    """How many of so many samples to take at a time: up to :data:`LARGEST`, and within a device's memory in all peaks.

    That is what is not allocated on a GPU yet, and :data:`CPU_MEMORY` on a CPU.
    """
    few, memory = COUNTED_AT[0], CPU_MEMORY
    if samples <= ALWAYS_FITS:
        return samples
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        memory = USABLE * total - torch.cuda.memory_allocated(device)
    with FakeTensorMode(allow_non_fake_inputs=True):
        each = max(1, *(peak(few) / few for peak in peaks))
    return max(1, min(LARGEST, samples, int(memory / each)))
