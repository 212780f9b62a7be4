"""Metrics against independent implementations: enumeration, numpy, scipy."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch

from dd2_lightning.evaluation.compare import finite
from dd2_lightning.families.llamagen.sampling import LlamaGenSampling
from dd2_lightning.families.table.model import TableTeacher
from dd2_lightning.metrics.diversity import WithinClassVariance
from dd2_lightning.metrics.frechet import FeatureGaussian, Gaussian, frechet_distance
from dd2_lightning.metrics.likelihood import sequence_nll
from dd2_lightning.sampling import Sampling
from helpers import circle
from teachers import labels_for, llamagen_teacher, random_indices
from toys import CODES, TOKENS, toy_teacher


@pytest.fixture(scope="module")
def teacher():
    return toy_teacher()


# --- likelihood --------------------------------------------------------------------------------------------------


def test_nll_is_that_of_the_joint(teacher):
    sequences = torch.tensor(list(itertools.product(range(CODES), repeat=TOKENS)))
    for label in (0, 7):
        nll = sequence_nll(teacher, sequences, torch.full((len(sequences),), label))
        expected = -teacher.joint[label].flatten().log()
        torch.testing.assert_close(nll, expected, rtol=1e-4, atol=1e-4)


def test_nll_is_of_the_guided_untruncated_teacher(teacher):
    sequences = torch.tensor(list(itertools.product(range(CODES), repeat=TOKENS)))
    labels = torch.full((len(sequences),), 3)
    guided = sequence_nll(teacher, sequences, labels, Sampling(guidance_scale=2.0, top_k=1, top_p=0.5, temperature=3.0))
    # guidance by hand, with the mixture of the classes as the null label
    tables = [teacher.joint[3], teacher.joint.mean(0)]
    expected = torch.zeros(len(sequences))
    for i in range(TOKENS):
        rows = []
        for table in tables:
            head = table.flatten(i + 1).sum(-1) if i < TOKENS - 1 else table
            rows.append((head / head.sum(-1, keepdim=True)).log()[tuple(sequences[:, :i].unbind(1))])
        cond, null = rows
        log_p = (null + 2 * (cond - null)).log_softmax(-1).expand(len(sequences), CODES)
        expected -= log_p.gather(1, sequences[:, i : i + 1])[:, 0]
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
    # a distribution: nothing was cut, nothing was added
    torch.testing.assert_close((-guided).exp().sum(), torch.tensor(1.0), rtol=1e-4, atol=0)


def test_nll_is_guided_where_sampling_is():
    """LlamaGen's ``cfg_interval`` = m guides tokens 0..m+1 only."""
    teacher = llamagen_teacher()
    indices, labels = random_indices(teacher, 5), labels_for(teacher, 5)
    rows = {
        scale: -teacher.logits(indices, labels, scale).log_softmax(-1).gather(-1, indices[..., None])[..., 0]
        for scale in (None, 3.0)
    }
    expected = rows[3.0][:, :4].sum(1) + rows[None][:, 4:].sum(1)
    nll = sequence_nll(teacher, indices, labels, LlamaGenSampling(guidance_scale=3.0, cfg_interval=2))
    torch.testing.assert_close(nll, expected)
    assert not torch.allclose(nll, rows[3.0].sum(1), atol=1e-2)


def test_nll_of_an_impossible_sequence_is_infinite():
    pair = TableTeacher(torch.eye(2)[None], circle(2))
    nll = sequence_nll(pair, torch.tensor([[0, 0], [0, 1]]), torch.zeros(2, dtype=torch.long))
    assert nll[0].item() == pytest.approx(np.log(2), abs=1e-5)
    assert nll[1].isinf() and finite(nll[1].item()) is None


def test_nll_wants_snapped_sequences(teacher):
    with pytest.raises(TypeError, match="snap"):
        sequence_nll(teacher, torch.zeros(2, TOKENS, 2), torch.zeros(2, dtype=torch.long))


# --- Fréchet distance --------------------------------------------------------------------------------------------


def features(count, width, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(count, width, generator=generator) @ mix / width**0.5 + shift


@pytest.mark.parametrize("width", [3, 32])
def test_frechet_distance_equals_scipys(width):
    first, second = features(700, width, 0), features(400, width, 1, shift=0.3)
    fits = FeatureGaussian(width), FeatureGaussian(width)
    for fit, parts in zip(fits, (first.split(133), second.split(57)), strict=True):
        for part in parts:
            fit.update(part)
    a, b = first.double().numpy(), second.double().numpy()
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(*(fit.compute() for fit in fits)) == pytest.approx(expected, abs=1e-6)


def test_frechet_distance_of_singular_covariances():
    flat = Gaussian(torch.zeros(2).double(), torch.diag(torch.tensor([4.0, 0.0]).double()), 10)
    other = Gaussian(torch.tensor([0.0, 3.0]).double(), torch.diag(torch.tensor([1.0, 9.0]).double()), 10)
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(flat, other) == pytest.approx(9 + (2 - 1) ** 2 + 9)


def test_frechet_distance_far_from_the_origin():
    fits = []
    for part in (features(500, 4, 0, shift=1000.0), features(500, 4, 0)):
        fit = FeatureGaussian(4)
        fit.update(part)
        fits.append(fit.compute())
    torch.testing.assert_close(fits[0].covariance, fits[1].covariance, rtol=1e-3, atol=1e-3)


def test_too_few_samples_warn_of_their_bias():
    metric = FeatureGaussian(16)
    metric.update(torch.randn(16, 16))
    with pytest.warns(UserWarning, match="16 samples for 16 features"):
        metric.compute()
    metric.reset()
    metric.update(torch.randn(1, 16))
    with pytest.raises(ValueError, match="at least 2 samples"):
        metric.compute()


def test_features_of_another_shape_are_refused():
    for wrong in (torch.zeros(5, 3), torch.zeros(5), torch.zeros(2, 5, 4)):
        with pytest.raises(ValueError, match=r"\(B, 4\)"):
            FeatureGaussian(4).update(wrong)
    one, two = (Gaussian(torch.zeros(d), torch.eye(d), 9) for d in (2, 3))
    with pytest.raises(ValueError, match="width 2 and 3"):
        frechet_distance(one, two)


# --- diversity ---------------------------------------------------------------------------------------------------


def test_within_class_variance_is_the_mean_trace():
    x, labels = features(900, 5, 0), torch.arange(900) % 3
    x = x * (labels + 1)[:, None] + 10 * labels[:, None]
    metric = WithinClassVariance(3, 5, minimum=300)
    for part, own in zip(x.split(71), labels.split(71), strict=True):
        metric.update(part, own)
    expected = np.mean([np.trace(np.cov(x[labels == k].double().T.numpy())) for k in range(3)])
    assert metric.compute() == pytest.approx(expected, rel=1e-9)


def test_diversity_needs_enough_samples_of_every_class():
    metric = WithinClassVariance(2, 4)
    metric.update(torch.randn(1100, 4), (torch.arange(1100) < 499).long())
    with pytest.raises(ValueError, match="class 1 has 499 samples, diversity needs at least 500"):
        metric.compute()
    with pytest.raises(ValueError, match="labels"):
        metric.update(torch.randn(3, 4), torch.zeros(2, dtype=torch.long))
