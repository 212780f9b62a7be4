"""How networks are run: recomputed activations, compilation, sharding. Results change by rounding only."""

from dataclasses import dataclass
from functools import partial

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
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
        """Run a network so from now on; the names of its parameters stay the same."""
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

    Gathered parameters are freed after every forward pass: those that stayed would keep the ``requires_grad`` of the
    update before, in which this network may have been frozen.
    """
    for module in (*blocks_of(network), network):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    if hasattr(network, "hidden"):  # of a velocity head: called beside forward
        register_fsdp_forward_method(network, "hidden")
