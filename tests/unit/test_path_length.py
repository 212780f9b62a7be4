"""Perceptual path length of generators whose path length is known."""

import math

import pytest
import torch

from dd2_lightning.metrics.classifier import ImageClassifier
from dd2_lightning.metrics.path_length import feature_distance, lerp, path_length, slerp, trimmed
from dd2_lightning.models.generator import OneStepGenerator
from dd2_lightning.noise import SampleNoise
from toys import CLASSES, toy_student, toy_teacher

N, C = 64, 8


def pixel_distance(first, second):
    return (first.double() - second.double()).square().flatten(1).sum(1)


def linear(scale=1.0):
    """Pictures are A_c z, with another factor for every class."""
    matrix = torch.randn(16, N * C) * scale

    def draw(labels, noise):
        factor = 1.0 + labels.view(-1, 1)
        return (factor * (noise.flatten(1) @ matrix.T)).unflatten(1, (1, 4, 4))

    return matrix.double(), draw


def test_length_of_straight_paths_through_a_linear_generator():
    """|A (z2 - z1)|² for every path, and 2 |A|² in the mean."""
    matrix, draw = linear()
    found = path_length(draw, (N, C), 2, pixel_distance, 2000, epsilon=1e-2, interpolation="lerp", discard=0.0)
    ends = SampleNoise(0, 0, 2000).randn("path", 2, N * C).double()
    factor = 1.0 + torch.arange(2000) % 2
    expected = (factor[:, None] * ((ends[:, 1] - ends[:, 0]) @ matrix.T)).square().sum(1)
    torch.testing.assert_close(found.lengths, expected, rtol=2e-2, atol=0)
    assert found.mean == pytest.approx(expected.mean().item(), rel=1e-3)
    assert found.mean == pytest.approx((1 + 4) / 2 * 2 * matrix.square().sum().item(), rel=0.05)


def test_length_of_arcs_through_a_linear_generator():
    """Two of many independent numbers are orthogonal: the arc's speed is π/2 times a draw's length, everywhere."""
    matrix, draw = linear()
    found = path_length(draw, (N, C), 1, pixel_distance, 2000, epsilon=1e-2, discard=0.0)
    assert found.mean == pytest.approx((math.pi / 2) ** 2 * matrix.square().sum().item(), rel=0.05)


def test_a_shorter_step_measures_the_same():
    _, draw = linear()
    coarse, fine = (path_length(draw, (N, C), 1, pixel_distance, 200, epsilon=e).mean for e in (1e-2, 1e-3))
    assert fine == pytest.approx(coarse, rel=0.01)


def test_arcs_keep_angle_and_length():
    first, second = torch.nn.functional.normalize(torch.randn(2, 50, 6).double(), dim=-1)
    t = torch.rand(50, 1).double()
    point, angle = slerp(first, second, t), (first * second).sum(1).acos()
    torch.testing.assert_close(point.norm(dim=1), torch.ones(50).double())
    torch.testing.assert_close((first * point).sum(1).acos(), t[:, 0] * angle)
    torch.testing.assert_close(slerp(3 * first, second, torch.ones(50, 1)), second)
    # where there is no arc, the straight line
    torch.testing.assert_close(slerp(first, 2 * first, t), lerp(first, 2 * first, t))
    assert slerp(first, -first, t).isfinite().all()


def test_outliers_are_left_out_on_both_sides():
    values = torch.arange(1000).double()[torch.randperm(1000)]
    kept = trimmed(values, 0.01)
    assert kept.min() == 9 and kept.max() == 990 and len(kept) == 982
    assert len(trimmed(values, 0.0)) == 1000
    with pytest.raises(ValueError, match="each side"):
        trimmed(values, 0.5)


def test_a_generator_with_pictures_measured_in_features():
    """Against the derivative along the path, by automatic differentiation."""
    teacher = toy_teacher()
    generator = OneStepGenerator(toy_student(teacher), teacher.tokenizer, 0.4).eval()
    network, shape = ImageClassifier((1, 8, 8), 10).requires_grad_(False).eval(), (generator.layout.length, 2)

    def draw(labels, noise):
        return generator.tokenizer.decode(generator.student.generate(noise, labels, 0.4))

    whole = path_length(draw, shape, CLASSES, feature_distance(network), 40, epsilon=1e-3, discard=0.0)
    parts = path_length(draw, shape, CLASSES, feature_distance(network), 40, epsilon=1e-3, discard=0.0, batch_size=7)
    torch.testing.assert_close(parts.lengths, whole.lengths, rtol=1e-2, atol=1e-4)
    noise = SampleNoise(0, 0, 40)
    first, second = noise.randn("path", 2, math.prod(shape)).unbind(1)
    t = noise.rand("path", 1) * (1 - 1e-3) + 5e-4
    labels = torch.arange(40) % CLASSES

    t.requires_grad_()
    features = network.features(draw(labels, slerp(first, second, t).unflatten(1, shape)))
    speed = torch.cat([torch.autograd.grad(part.sum(), t, retain_graph=True)[0] for part in features.unbind(1)], 1)
    assert whole.mean == pytest.approx(speed.square().sum(1).mean().item(), rel=0.02)
    assert whole.deviation == pytest.approx(whole.lengths.std(correction=0).item())


def test_numbers_that_cannot_be():
    for wrong in ({"samples": 0}, {"epsilon": 0.0}, {"batch_size": 0}, {"discard": 0.7}):
        with pytest.raises(ValueError, match="got"):
            path_length(linear()[1], (N, C), 1, pixel_distance, **{"samples": 3, **wrong})
