"""Samplers: what each draws, against the teacher's own random numbers and exact tables."""

import pytest
import torch

from benchmarks.tables import independent_total_variation, random_table
from dd2_lightning.data import DigitsData
from dd2_lightning.data.images import ImageSet
from dd2_lightning.evaluation.baselines import IndependentSampler, Marginals, RealImages, SkipSampler
from dd2_lightning.evaluation.samplers import (
    ARDiffusionSampler,
    DD1Sampler,
    OneStepSampler,
    RefinedSampler,
    TeacherSampler,
)
from dd2_lightning.families.var.sampling import VARSampling
from dd2_lightning.models.dd1_generator import DD1Generator
from dd2_lightning.models.generator import OneStepGenerator
from dd2_lightning.noise import SampleNoise
from dd2_lightning.sampling import Sampling
from teachers import (
    labels_for,
    llamagen_teacher,
    random_indices,
    randomise,
    student_of,
    table_teacher,
    two_sequences,
    var_teacher,
)
from toys import CLASSES, CODES, TOKENS, toy_student, toy_teacher

SIZES = {"width": 16, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def teacher():
    return toy_teacher()


@pytest.fixture(scope="module")
def generator(teacher):
    return OneStepGenerator(toy_student(teacher), teacher.tokenizer, 0.4).eval()


def marginals_of(teacher, samples: int = 100) -> Marginals:
    labels = labels_for(teacher, samples)
    return Marginals(teacher.sample(labels), labels, teacher.num_classes)


def learned(sampler, marginals=None):
    sampler.marginals = marginals or marginals_of(sampler.teacher)
    return sampler


def generator_of(teacher) -> OneStepGenerator:
    return OneStepGenerator(student_of(teacher), teacher.tokenizer, 0.4).eval()


# --- random numbers ----------------------------------------------------------------------------------------------


def test_noise_depends_on_the_global_index_only():
    whole = SampleNoise(3, 0, 700).randn("a", 2)
    for start, count in ((250, 300), (300, 7), (512, 188)):
        assert torch.equal(SampleNoise(3, start, count).randn("a", 2), whole[start : start + count])
    assert not torch.equal(SampleNoise(3, 0, 700).randn("b", 2), whole)
    assert not torch.equal(SampleNoise(4, 0, 700).randn("a", 2), whole)
    assert abs(whole.mean()) < 0.1 and abs(whole.std() - 1) < 0.1
    assert len(whole.unique()) > 1390


def test_samples_do_not_depend_on_the_batch_size(teacher, generator):
    real = RealImages()
    real.data = DigitsData()
    real.bind(teacher)
    real.images, real.labels = ImageSet(*(part[:200] for part in real.images)), real.labels[:200]
    one_step = OneStepSampler(model=generator).bind(teacher)
    for sampler in (
        TeacherSampler().bind(teacher, Sampling(guidance_scale=1.5, top_k=3)),
        one_step,
        OneStepSampler(model=generator, snapped=True).bind(teacher),
        RefinedSampler(model=generator, steps=3).bind(teacher),
        learned(IndependentSampler().bind(teacher)),
        learned(SkipSampler(skipped=2).bind(teacher)),
        ARDiffusionSampler(model=generator.student, euler_steps=2).bind(teacher),
        real,
    ):
        sets = []
        for batch_size in (1000, 77):
            drawn = list(sampler.batches(300, 1, batch_size))
            sets.append([torch.cat([getattr(b, part) for b in drawn]) for part in ("labels", "images", "indices")])
        torch.testing.assert_close(sets[0][1], sets[1][1], rtol=1e-5, atol=1e-5, msg=sampler.name)
        assert torch.equal(sets[0][0], sets[1][0]) and torch.equal(sets[0][2], sets[1][2]), sampler.name
        assert len(sets[0][0]) == (300 if sampler.synthetic else 200)


# --- generators --------------------------------------------------------------------------------------------------


def test_one_step_is_decoded_raw_and_measured_snapped(teacher, generator):
    sampler = OneStepSampler(model=generator).bind(teacher)
    raw, snapped = (
        next(c.batches(200, 0, 200)) for c in (sampler, OneStepSampler(model=generator, snapped=True).bind(teacher))
    )
    assert torch.equal(raw.indices, snapped.indices)
    assert torch.equal(snapped.images, teacher.decode(snapped.indices))
    assert not torch.allclose(raw.images, snapped.images, atol=1e-3)


@pytest.mark.parametrize("make", [table_teacher, var_teacher, llamagen_teacher])
def test_refined_is_the_draft_at_one_step_and_the_teacher_at_all(make):
    teacher = make()
    generator, labels, noise = generator_of(teacher), labels_for(teacher, 12), SampleNoise(0, 0, 12)
    sampling, N = Sampling(guidance_scale=2.0, top_k=3), teacher.layout.num_positions
    draft = OneStepSampler(model=generator).bind(teacher).sample(labels, noise)
    assert torch.equal(RefinedSampler(model=generator, steps=1).bind(teacher, sampling).sample(labels, noise), draft)
    drawn = TeacherSampler().bind(teacher, sampling).sample(labels, noise)
    refined = RefinedSampler(model=generator, steps=N + 1).bind(teacher, sampling)
    assert torch.equal(refined.sample(labels, noise), teacher.embed(drawn)) and refined.passes == N + 1
    two = RefinedSampler(model=generator, steps=2).bind(teacher, sampling).sample(labels, noise)
    last = teacher.layout.offsets[-2]
    assert torch.equal(two[:, :last], draft[:, :last])
    assert torch.equal(two[:, last:], teacher.embed(teacher.snap(two[:, last:])))
    with pytest.raises(ValueError, match=rf"steps must be in 1..{N + 1}"):
        RefinedSampler(model=generator, steps=N + 2).bind(teacher)


def test_refined_keeps_to_possible_sequences():
    """Whatever the draft's first token is, on {(0, 0), (1, 1)} the teacher knows the second."""
    pair = two_sequences()
    labels, noise = torch.zeros(500, dtype=torch.long), SampleNoise(0, 0, 500)
    generator = generator_of(pair)
    draft, refined = (
        pair.snap(c.sample(labels, noise))
        for c in (OneStepSampler(model=generator).bind(pair), RefinedSampler(model=generator, steps=2).bind(pair))
    )
    assert pair.total_variation(draft)[1] > 0.05 and pair.total_variation(refined)[1] == 0
    assert torch.equal(draft[:, 0], refined[:, 0])


@pytest.mark.parametrize("make", [table_teacher, var_teacher, llamagen_teacher])
def test_dd1_in_its_steps_and_with_the_teacher_in_the_middle(make):
    teacher = make()
    N = teacher.layout.num_positions
    generator = DD1Generator(randomise(teacher.dd1_student()), teacher.tokenizer, split=N - 1, second=2)
    labels, noise = labels_for(teacher, 12), SampleNoise(0, 0, 12)
    eps = noise.randn("generator", teacher.layout.length, teacher.token_dim)
    for steps in (1, 2):
        sampler = DD1Sampler(model=generator, steps=steps).bind(teacher)
        assert torch.equal(sampler.sample(labels, noise), generator.sample(labels, eps, steps=steps))
        assert sampler.passes == steps and sampler.name == f"DD1 {steps}-step"
    whole = TeacherSampler().bind(teacher).sample(labels, noise)
    for start, steps in ((0, 3), (1, 3)):  # the teacher's two positions and a call; a call, one position, a call
        sampler = DD1Sampler(model=generator, start=start).bind(teacher)
        drawn = sampler.sample(labels, noise)
        assert sampler.passes == steps and sampler.name == f"DD1 {start}-2"
        if start == 0:
            end = teacher.layout.offsets[2]
            assert torch.equal(drawn[:, :end], teacher.embed(whole[:, :end]))
    student = sum(p.numel() for p in generator.student.parameters())
    assert DD1Sampler(model=generator, steps=2).bind(teacher).parameters == student
    assert sampler.parameters == student + TeacherSampler().bind(teacher).parameters
    assert DD1Sampler(model=generator, steps=1, split=0).bind(teacher).sample(labels, noise).shape == drawn.shape
    for settings, message in (
        ({}, "give steps"),
        ({"steps": 1, "start": 0}, "give steps"),
        ({"steps": 3}, "3 steps need a teacher"),
        ({"start": 2}, "start must be in 0..1"),
        ({"start": 0, "split": N + 1}, "split must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            DD1Sampler(model=generator, **settings).bind(teacher)


def test_parameters_are_those_of_the_networks_that_sample():
    teacher = var_teacher()
    generator = generator_of(teacher)
    student = sum(p.numel() for p in generator.student.parameters())
    own = sum(p.numel() for key, p in teacher.named_parameters() if not key.startswith("tokenizer."))
    assert TeacherSampler().bind(teacher).parameters == own
    one_step = OneStepSampler(model=generator).bind(teacher)
    assert one_step.parameters == OneStepSampler(model=generator, snapped=True).bind(teacher).parameters == student
    assert ARDiffusionSampler(model=generator.student).bind(teacher).parameters == student
    assert RefinedSampler(model=generator, steps=2).bind(teacher).parameters == own + student
    assert SkipSampler(skipped=1).bind(teacher).parameters == own
    assert IndependentSampler().bind(teacher).parameters is None


def test_ar_diffusion_takes_euler_steps(teacher, generator):
    labels, noise = labels_for(teacher, 10), SampleNoise(0, 0, 10)
    two, ten = (
        ARDiffusionSampler(model=generator.student, euler_steps=k).bind(teacher).sample(labels, noise) for k in (2, 10)
    )
    assert not torch.allclose(two, ten, atol=1e-3)
    with pytest.raises(ValueError, match="euler_steps must be at least 1, got 0"):
        ARDiffusionSampler(model=generator.student, euler_steps=0).bind(teacher)


# --- independent tokens, and a teacher that stops early ------------------------------------------------------------


def total_variation(indices: torch.Tensor, table: torch.Tensor) -> float:
    """Distance of drawn sequences from a table over all of them, (V, ..., V)."""
    V = table.shape[0]
    index = sum(column * V ** (table.ndim - 1 - i) for i, column in enumerate(indices.unbind(1)))
    return (torch.bincount(index, minlength=table.numel()) / len(indices) - table.flatten()).abs().sum().item() / 2


def product_of_marginals(joint: torch.Tensor) -> torch.Tensor:
    """From (V, ..., V), by another way than the code's."""
    parts = [joint.movedim(i, 0).flatten(1).sum(1) for i in range(joint.ndim)]
    return torch.einsum("i,j,k->ijk", *parts)


@pytest.fixture(scope="module")
def table():
    """Three tokens of eight codes, 36 of 512 sequences possible."""
    return random_table(0, SIZES)


SAMPLES = 20_000


def drawn_from(table, sampler):
    labels = torch.zeros(SAMPLES, dtype=torch.long)
    marginals = marginals_of(table, 50_000)
    return learned(sampler, marginals).sample(labels, SampleNoise(0, 0, SAMPLES))


def test_independent_tokens_have_the_product_of_marginals(table):
    drawn = drawn_from(table, IndependentSampler().bind(table))
    assert total_variation(drawn, product_of_marginals(table.joint[0])) < 0.05
    distance, _ = table.total_variation(drawn)
    assert distance == pytest.approx(independent_total_variation(table), abs=0.01) and distance > 0.5


def test_skip_has_the_teachers_head_and_independent_tails(table):
    joint = table.joint[0]
    marginals = [joint.sum((1, 2)), joint.sum((0, 2)), joint.sum((0, 1))]
    exact = {
        0: joint,
        1: joint.sum(2)[..., None] * marginals[2],
        2: torch.einsum("i,j,k->ijk", *marginals),
        3: torch.einsum("i,j,k->ijk", *marginals),
    }
    between = (exact[0] - exact[1]).abs().sum() / 2
    assert between > 0.3  # or what follows would not tell them apart
    for skipped, wanted in exact.items():
        assert total_variation(drawn_from(table, SkipSampler(skipped=skipped).bind(table)), wanted) < 0.05, skipped


@pytest.mark.parametrize("make", [toy_teacher, var_teacher, llamagen_teacher])
def test_skip_lies_between_the_teacher_and_independent_tokens(make):
    teacher = make()
    N, marginals = teacher.layout.num_positions, marginals_of(teacher)
    labels, noise, sampling = labels_for(teacher, 20), SampleNoise(0, 0, 20), Sampling(guidance_scale=2.0)
    whole = TeacherSampler().bind(teacher, sampling).sample(labels, noise)
    independent = learned(IndependentSampler().bind(teacher), marginals).sample(labels, noise)
    for skipped in (0, 1, N):
        sampler = learned(SkipSampler(skipped=skipped).bind(teacher, sampling), marginals)
        drawn, end = sampler.sample(labels, noise), teacher.layout.offsets[N - skipped]
        assert torch.equal(drawn[:, :end], whole[:, :end]) and torch.equal(drawn[:, end:], independent[:, end:])
        assert sampler.passes == max(1, N - skipped)
    with pytest.raises(ValueError, match=rf"skipped must be in 0..{N}"):
        SkipSampler(skipped=N + 1).bind(teacher)


def test_skip_takes_soft_tokens():
    teacher = var_teacher()
    sampler = learned(SkipSampler(skipped=1).bind(teacher, VARSampling(more_smooth=True)))
    drawn = sampler.sample(labels_for(teacher, 4), SampleNoise(0, 0, 4))
    assert drawn.shape == (4, teacher.layout.length, teacher.token_dim)


def test_independent_tokens_put_half_their_mass_on_impossible_pairs():
    pair = two_sequences()
    drawn = drawn_from(pair, IndependentSampler().bind(pair))
    distance, impossible = pair.total_variation(drawn)
    assert impossible == pytest.approx(0.5, abs=0.02)
    assert distance == pytest.approx(independent_total_variation(pair), abs=0.02)


def test_independent_tokens_keep_the_marginals_of_each_class(teacher):
    labels = torch.arange(20_000).flip(0) % CLASSES  # not sorted, to test the grouping
    marginals = Marginals(teacher.sample(labels), labels, CLASSES)
    sampled = marginals.draw(torch.full((5000,), 4), torch.rand(5000, TOKENS))
    for position in range(TOKENS):
        others = [axis for axis in range(TOKENS) if axis != position]
        marginal = teacher.joint[4].sum(others)
        drawn = sampled[:, position].bincount(minlength=CODES) / 5000
        torch.testing.assert_close(drawn, marginal, rtol=0, atol=0.05)
    with pytest.raises(ValueError, match="no sequence of class 2"):
        Marginals(random_indices(teacher, 2), torch.tensor([0, 1]), CLASSES)
