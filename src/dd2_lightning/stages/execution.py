"""How networks are run, which changes no result but for rounding: recomputed activations, compilation, sharding."""

from dataclasses import dataclass
from functools import partial

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint


@dataclass
class Execution:
    """Flags of a run, not of a model.

    Attributes:
        activation_checkpointing: keep the input of every transformer and head block only, and compute the rest again
            in the backward pass: about a third more operations, activations of one block instead of all.
        compile: backend of ``torch.compile``, e.g. ``inductor``; None is off.
    """

    activation_checkpointing: bool = False
    compile: str | None = None

    def apply(self, network: nn.Module) -> None:
        """Run this network so from now on; the names of its parameters stay what they are."""
        if self.activation_checkpointing:
            for block in blocks_of(network):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        if self.compile:
            network.compile(backend=self.compile)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network: the entries of its module lists."""
    return [block for child in network.children() if isinstance(child, nn.ModuleList) for block in child]


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Divide parameters, gradients and optimizer states among the processes of a mesh (FSDP2), block by block.

    Whole parameters are given up after every forward pass: those that stayed would keep the ``requires_grad`` of the
    update before, in which this network may have been frozen.
    """
    for part in (*blocks_of(network), network):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
