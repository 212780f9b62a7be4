"""The package of LPIPS, for where it is not installed."""

import sys
from types import SimpleNamespace

import torch


class FakeLPIPS(torch.nn.Module):
    """What the package offers, with a distance that can be computed by hand."""

    def __init__(self, net, pretrained, pnet_rand, verbose):
        super().__init__()
        assert (net, pretrained, pnet_rand) == ("vgg", False, True)  # nothing is downloaded
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, one, other):
        assert one.shape[1] == 3 and other.min() >= -1 and other.max() <= 1
        return self.scale * (one - other).square().mean((1, 2, 3), keepdim=True)


def install_lpips(monkeypatch, weights, scale: float = 3.0):
    """Let ``import lpips`` find it, and write a file of weights."""
    torch.save({"scale": torch.tensor(scale)}, weights)
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=FakeLPIPS))
    return weights
