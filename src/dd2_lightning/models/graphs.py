"""Functions of tensors as CUDA graphs: at small batches launching kernels, not arithmetic, takes the time."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dd2_lightning.models.layers import Linear


class Recording(NamedTuple):
    """A captured call: its graph, and the memory that inputs are copied to and the output is read from."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class Replayed:
    """A function of tensors that is captured at its first call with every shape, and replayed from then on.

    On other devices it is called as it is. Nothing in it may depend on values of tensors, so random numbers are
    arguments; its weights may change in place, not move.

    Args:
        function: from tensors to one tensor. An autocast has to be entered inside.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function
        self.recordings: dict[tuple[torch.Size, ...], Recording] = {}

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function of these tensors, in memory of its own."""
        if not inputs[0].is_cuda:
            return self.function(*inputs)
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self.recordings:
            self.recordings[shapes] = self.record(inputs)
        graph, memory, output = self.recordings[shapes]
        for place, tensor in zip(memory, inputs, strict=True):
            place.copy_(tensor)
        graph.replay()
        return output.clone()

    def record(self, inputs: tuple[Tensor, ...]) -> Recording:
        """Call the function once as it is, then capture it."""
        memory = tuple(tensor.clone() for tensor in inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.function(*memory)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.function(*memory)
        return Recording(graph, memory, output)


def cast_linears(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Keep the weights of all :class:`Linear` maps in ``dtype``: the numbers of autocast, without a cast every call."""
    for linear in module.modules():
        if isinstance(linear, Linear):
            linear.to(dtype)
    return module
