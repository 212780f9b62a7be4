"""The Fréchet distance as a loss, against NumPy, finite differences and SciPy."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from dd2_lightning.errors import NonFiniteLossError
from dd2_lightning.metrics.frechet import (
    FeatureGaussian,
    Gaussian,
    RunningFrechet,
    differentiable_distance,
    frechet_distance,
    square_root,
)
from dd2_lightning.metrics.simple import UNTRAINED
from dd2_lightning.stages.features import gathered
from processes import Forked

WIDTH = 5


def gaussian(*shape, shift=0.0):
    features = torch.randn(*shape, dtype=torch.float64) @ torch.randn(WIDTH, WIDTH, dtype=torch.float64) + shift
    fit = FeatureGaussian(WIDTH)
    fit.update(features)
    return fit.compute(), features


def running(decay, generated=None):
    """With moments of 60 samples, and a reference of 70."""
    moments = RunningFrechet(WIDTH, decay)
    reference = gaussian(70, WIDTH, shift=1.0)[0]
    moments.start(generated or gaussian(60, WIDTH)[0], reference)
    return moments, reference


def test_it_is_the_distance_of_scipys_square_root():
    one, other = gaussian(40, WIDTH)[0], gaussian(50, WIDTH, shift=0.5)[0]
    found = differentiable_distance(one.mean, one.covariance, other.mean, square_root(other.covariance))
    assert found.item() == pytest.approx(frechet_distance(one, other), rel=1e-10)


def test_singular_covariances_have_a_distance_and_a_gradient():
    """Three samples of five features on both sides, in spaces that differ."""
    (one, x), (other, _) = gaussian(3, WIDTH), gaussian(3, WIDTH)
    x.requires_grad_()
    covariance = torch.cov(x.T)
    distance = differentiable_distance(x.mean(0), covariance, other.mean, square_root(other.covariance))
    assert distance.item() == pytest.approx(frechet_distance(one, other), rel=1e-6)
    (slope,) = torch.autograd.grad(distance, x)
    assert slope.isfinite().all() and slope.any()


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_gradient_is_that_of_finite_differences(decay):
    moments, _ = running(decay)
    assert gradcheck(moments, torch.randn(12, WIDTH, dtype=torch.float64, requires_grad=True), atol=1e-7)


@pytest.mark.parametrize("parts", [1, 3])
def test_running_moments_are_numpys(parts):
    """Whatever the number of micro-batches."""
    first = gaussian(60, WIDTH)[1].numpy()
    moments, reference = running(0.9, fit_of(first))
    mean, products = first.mean(0), first.T @ first / len(first)
    for _ in range(4):
        batch = np.random.default_rng(0).normal(size=(12, WIDTH))
        for part in np.split(batch, parts):
            distance = moments(torch.from_numpy(part))
        mean = 0.9 * mean + 0.1 * batch.mean(0)
        products = 0.9 * products + 0.1 * batch.T @ batch / len(batch)
        moments.update()
        assert np.allclose(moments.mean, mean, rtol=1e-12) and np.allclose(moments.products, products, rtol=1e-12)
    if parts == 1:
        fitted = torch.from_numpy(mean), torch.from_numpy(products - np.outer(mean, mean))
        expected = frechet_distance(type(reference)(*fitted, 0), reference)
        assert distance.item() == pytest.approx(expected, rel=1e-10)


def fit_of(features):
    fit = FeatureGaussian(WIDTH)
    fit.update(torch.from_numpy(features))
    return fit.compute()


def test_a_batch_that_was_not_taken_in_changes_nothing():
    moments, _ = running(0.9)
    before = moments.mean.clone()
    assert moments(torch.randn(12, WIDTH)).dtype == torch.float64
    assert torch.equal(moments.mean, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("width", [3, 70])
def test_features_and_moments_that_are_not_finite_are_an_error(bad, width):
    """Whether LAPACK notices or not."""
    identity = Gaussian(torch.zeros(width), torch.eye(width), 100)
    for spoil in (lambda moments, f: f.fill_(bad), lambda moments, f: moments.products[1, 1].fill_(bad)):
        moments, features = RunningFrechet(width, 0.9, "Pixels"), torch.randn(4, width)
        moments.start(identity, identity)
        spoil(moments, features)
        with pytest.raises(NonFiniteLossError, match="moments, are not finite: Pixels"):
            moments(features)
            moments.check_finite()


@pytest.mark.parametrize("name", UNTRAINED)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 20, 20), (1, 3, 3)])
def test_untrained_networks_read_any_image(name, shape):
    network, images = UNTRAINED[name](), torch.rand(4, *shape, requires_grad=True)
    features = network.features(images)
    assert features.shape == (4, network.width) and network.logits(features) is None
    (slope,) = torch.autograd.grad(features.square().sum(), images)
    assert slope.abs().sum() > 0
    assert torch.equal(features, UNTRAINED[name]().features(images))


def step_of(rank: int, processes: int, store: str) -> torch.Tensor:
    """Gradient of the distance in a weight, averaged over processes as DDP does, and the moments after it."""
    if processes > 1:
        torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=processes)
    rng = torch.Generator().manual_seed(1)
    inputs, weight = (torch.randn(12, WIDTH, generator=rng), torch.randn(WIDTH, WIDTH, generator=rng))
    unit = Gaussian(torch.zeros(WIDTH), torch.eye(WIDTH), 100)
    moments = RunningFrechet(WIDTH, 0.9)
    moments.start(unit, Gaussian(torch.ones(WIDTH), 2 * torch.eye(WIDTH), 100))
    weight.requires_grad_()
    moments(gathered(inputs.chunk(processes)[rank] @ weight)).backward()
    moments.update()
    if processes > 1:
        torch.distributed.all_reduce(weight.grad)
        torch.distributed.destroy_process_group()
    return torch.cat([weight.grad.flatten() / processes, moments.mean, moments.products.flatten()])


def test_two_processes_take_the_step_of_one(tmp_path):
    def run(rank):
        torch.save(step_of(rank, 2, str(tmp_path / "store")), tmp_path / f"{rank}.pt")

    children = [Forked(lambda rank=rank: run(rank), tmp_path / f"log{rank}") for rank in range(2)]
    assert [child.wait(100) for child in children] == [0, 0], children[0].output()
    alone = step_of(0, 1, "")
    for rank in range(2):
        assert torch.allclose(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone, rtol=1e-6, atol=1e-8)
