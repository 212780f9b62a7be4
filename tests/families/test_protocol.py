"""What every teacher and every student promises, whatever its family; and the table teacher, which must be exact."""

import itertools
import math

import pytest
import torch

from dd2_lightning.errors import InputTypeError
from dd2_lightning.families.table.model import CausalBackbone, TableTeacher
from dd2_lightning.flow import CodebookFlow, euler_times, integrate
from dd2_lightning.layout import Layout
from dd2_lightning.metrics.likelihood import sequence_nll
from dd2_lightning.models.codebook_teacher import require_codebook
from dd2_lightning.models.generator import OneStepGenerator
from dd2_lightning.models.student import build_student
from dd2_lightning.models.teacher import Teacher
from dd2_lightning.models.truncation import draw, keep_likeliest
from dd2_lightning.models.walk import integrate_walk
from dd2_lightning.sampling import Sampling
from helpers import circle
from teachers import FAMILIES, labels_for, random_indices, student_of, table_teacher, two_sequences

B = 3
GUIDED = Sampling(guidance_scale=1.5, top_k=3, temperature=0.9)


@pytest.fixture(params=FAMILIES)
def teacher(request):
    return FAMILIES[request.param]().eval().requires_grad_(False)


@pytest.fixture
def student(teacher):
    return student_of(teacher).requires_grad_(False)


@pytest.fixture
def labels(teacher):
    return labels_for(teacher, B)


def noisy(teacher, batch=B):
    """Tokens as a generator makes them: near the codebook, not on it."""
    q = teacher.embed(random_indices(teacher, batch))
    return q + 0.05 * torch.randn_like(q)


# --- teachers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [None, GUIDED])
def test_teacher_walk_agrees_with_the_whole_sequence(teacher, labels, sampling):
    """With its cache or without, from the start or from any prefix."""
    tokens, layout = noisy(teacher), teacher.layout
    whole = teacher.flow(tokens, labels, sampling).log_p
    for start in range(layout.num_positions):
        walk = teacher.walk(labels, sampling, tokens[:, : layout.offsets[start]])
        seen = 0
        for flow in walk:
            torch.testing.assert_close(flow.log_p, whole[:, walk.span], rtol=1e-4, atol=1e-4)
            walk.append(tokens[:, walk.span])
            seen += 1
        assert seen == layout.num_positions - start
        torch.testing.assert_close(walk.tokens, tokens)


def test_teacher_is_causal(teacher, labels):
    """Other tokens at a position change the distributions of later positions, and of no other."""
    layout, V = teacher.layout, len(teacher.codebook)
    tokens = random_indices(teacher, B)
    log_p = teacher.flow(tokens, labels).log_p
    for position in range(layout.num_positions):
        changed = tokens.clone()
        changed[:, layout.span(position)] = (changed[:, layout.span(position)] + 1) % V
        difference = (teacher.flow(changed, labels).log_p - log_p).abs().amax((0, 2))
        after = layout.offsets[position + 1]
        assert difference[:after].max() < 1e-6
        for later in range(position + 1, layout.num_positions):
            assert difference[layout.span(later)].min() > 1e-4


def test_indices_and_their_embeddings_are_the_same_tokens(teacher, labels):
    indices = random_indices(teacher, B)
    assert torch.equal(teacher.snap(teacher.embed(indices)), indices)
    logits = teacher.logits(indices, labels)
    torch.testing.assert_close(teacher.logits(teacher.embed(indices), labels), logits)
    assert logits.shape == (B, teacher.layout.length, len(teacher.codebook))
    assert logits.dtype == torch.float32
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(teacher.logits(indices.to(dtype), labels), logits)


def test_snap_is_the_nearest_code(teacher):
    tokens = torch.randn(B, teacher.layout.length, teacher.token_dim)
    distance = (tokens[:, :, None] - teacher.codebook).square().sum(-1)
    assert torch.equal(teacher.snap(tokens), distance.argmin(-1))


def test_wrong_tokens_are_refused(teacher, labels):
    n, C = teacher.layout.length, teacher.token_dim
    wrong = [
        torch.zeros(B, n),  # floating indices
        torch.zeros(B, n, C, dtype=torch.long),  # integer embeddings
        torch.zeros(B, n, dtype=torch.bool),
        torch.zeros(B, n, C + 1),
    ]
    for tokens in wrong:
        for call in (teacher.logits, teacher.flow):
            with pytest.raises(TypeError, match=rf"floating embeddings \(B, n, {C}\)"):
                call(tokens, labels)
    with pytest.raises(ValueError, match="inside a position"):
        teacher.logits(torch.zeros(B, n + 1, dtype=torch.long), labels)


@pytest.mark.parametrize("bad", [-1, "null"])
def test_labels_out_of_range_are_refused(teacher, student, bad):
    """The null label too: it is the model's own business."""
    bad = teacher.num_classes if bad == "null" else bad
    labels, tokens = torch.tensor([0, bad]), random_indices(teacher, 2)
    calls = [
        lambda: teacher.logits(tokens, labels),
        lambda: teacher.walk(labels),
        lambda: teacher.sample(labels),
        lambda: student.walk(labels),
        lambda: OneStepGenerator(student, teacher.tokenizer, 1.0).sample(labels),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"label {bad} is out of range.*0\.\.{teacher.num_classes - 1}"):
            call()


def test_samples_are_pure_functions_of_their_numbers(teacher, labels):
    uniforms = torch.rand(B, teacher.layout.length)
    drawn = teacher.sample(labels, GUIDED, uniforms=uniforms)
    for b in range(B):
        alone = teacher.sample(labels[b : b + 1], GUIDED, uniforms=uniforms[b : b + 1])
        assert torch.equal(alone[0], drawn[b])
    seeded = [teacher.sample(labels, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    assert drawn.shape == (B, teacher.layout.length)
    assert drawn.dtype == torch.long


def test_the_most_likely_tokens_are_sampled_with_top_k_of_one(teacher, labels):
    drawn = teacher.sample(labels, Sampling(top_k=1))
    assert torch.equal(teacher.logits(drawn, labels).argmax(-1), drawn)
    assert len(teacher.sample(torch.zeros(50, dtype=torch.long)).unique(dim=0)) > 1


def test_a_sample_keeps_its_prefix(teacher, labels):
    tokens = noisy(teacher)
    kept = teacher.layout.offsets[2]
    for prefix in (tokens[:, :kept], teacher.snap(tokens[:, :kept])):
        assert torch.equal(teacher.sample(labels, prefix=prefix)[:, :kept], teacher.snap(tokens[:, :kept]))


def test_refinement_keeps_the_draft_and_resamples_its_last_positions(teacher, labels):
    """k steps in all: one for the draft, k-1 by the teacher."""
    draft, layout = noisy(teacher), teacher.layout
    uniforms = torch.rand(B, layout.length)
    N = layout.num_positions
    assert torch.equal(teacher.refine(draft, labels, 1), draft)
    for steps in range(2, N + 2):
        kept = layout.offsets[N + 1 - steps]
        refined = teacher.refine(draft, labels, steps, GUIDED, uniforms=uniforms)
        assert torch.equal(refined[:, :kept], draft[:, :kept])
        indices = teacher.sample(labels, GUIDED, prefix=draft[:, :kept], uniforms=uniforms)
        assert torch.equal(refined[:, kept:], teacher.embed(indices[:, kept:]))
    everything = teacher.embed(teacher.sample(labels, GUIDED, uniforms=uniforms))
    assert torch.equal(teacher.refine(draft, labels, N + 1, GUIDED, uniforms=uniforms), everything)
    for steps in (0, N + 2):
        with pytest.raises(ValueError, match=rf"steps must be in 1\.\.{N + 1}"):
            teacher.refine(draft, labels, steps)


def test_a_walk_insists_on_its_tokens(teacher, labels):
    walk = teacher.walk(labels)
    with pytest.raises(RuntimeError, match="position 0: append"):
        for _ in walk:
            pass
    walk = teacher.walk(labels)
    for count in (0, 2):
        with pytest.raises(ValueError, match=f"position 0 has 1 tokens, got {count}"):
            walk.append(torch.zeros(B, count, dtype=torch.long))


# --- students --------------------------------------------------------------------------------------------------------


def dependence(function, x):
    """Which output tokens depend on which input tokens, by automatic differentiation: (n, n) booleans.

    ``function`` maps (1, n, C) to (1, n, d); a random projection of d keeps zeros exact and nothing else zero.
    """
    projection = torch.randn_like(function(x)[0, 0])
    jacobian = torch.autograd.functional.jacobian(lambda x: (function(x) @ projection)[0], x)
    return (jacobian[:, 0] != 0).any(-1)


def test_student_features_see_earlier_positions_only(teacher, student):
    position = teacher.layout.position_of_token()
    backbone, label = student.backbone, torch.zeros(1, dtype=torch.long)
    depends = dependence(lambda tokens: backbone(tokens, label), noisy(teacher, 1))
    assert torch.equal(depends, position[:, None] > position[None, :])


@pytest.mark.parametrize("head_time", [1.0, 0.4])
def test_generator_reads_the_noise_of_earlier_positions_and_its_own(teacher, student, head_time):
    position = teacher.layout.position_of_token()
    label = torch.zeros(1, dtype=torch.long)
    noise = torch.randn(1, teacher.layout.length, teacher.token_dim)
    depends = dependence(lambda noise: student.generate(noise, label, head_time), noise)
    own = torch.eye(teacher.layout.length, dtype=torch.bool)
    assert torch.equal(depends, (position[:, None] > position[None, :]) | own)


def test_student_walk_agrees_with_the_whole_sequence(teacher, student, labels):
    tokens, layout = noisy(teacher), teacher.layout
    x_t, t = torch.randn(B, layout.length, 2, teacher.token_dim), torch.rand(B, layout.length, 2)
    whole = student.flow(tokens, labels).velocity(x_t, t)
    assert whole.std() > 0.1
    for start in range(layout.num_positions):
        walk = student.walk(labels, tokens[:, : layout.offsets[start]])
        for flow in walk:
            now = flow.velocity(x_t[:, walk.span], t[:, walk.span])
            torch.testing.assert_close(now, whole[:, walk.span], rtol=1e-4, atol=1e-4)
            walk.append(tokens[:, walk.span])
        assert walk.tokens.shape == tokens.shape


def test_velocity_of_a_draw_depends_on_its_token_its_time_and_the_prefix(teacher, student, labels):
    """The m draws share the features and nothing else."""
    n, C = teacher.layout.length, teacher.token_dim
    x_t, t, features = torch.randn(B, n, 3, C), torch.rand(B, n, 3), torch.randn(B, n, student.backbone.width)
    v = student.head(x_t, t, features)

    def changed(x_t, t, features):
        return (student.head(x_t, t, features) - v).abs().amax(-1) > 1e-4

    one_draw = torch.zeros(B, n, 3, dtype=torch.bool)
    one_draw[1, n - 1, 2] = True
    one_token = one_draw.any(-1, keepdim=True)
    assert torch.equal(changed(x_t + one_draw[..., None], t, features), one_draw)
    assert torch.equal(changed(x_t, t + 0.3 * one_draw, features), one_draw)
    assert torch.equal(changed(x_t, t, torch.where(one_token, -features, features)), one_token.expand(B, n, 3))


def test_student_tells_classes_apart(teacher, student):
    tokens = noisy(teacher, 1)
    features = [student.backbone(tokens, torch.tensor([label])) for label in range(2)]
    assert (features[0] - features[1]).abs().amax((0, 2)).min() > 1e-3


def test_students_start_as_the_zero_velocity(teacher, labels):
    """So the first one-step tokens are the noise itself."""
    noise = torch.randn(B, teacher.layout.length, teacher.token_dim)
    assert torch.equal(build_student(teacher, width=16, depth=2).generate(noise, labels), noise)


def test_generator_is_one_call_of_its_flow(teacher, student, labels):
    """q = ε - t_g v(ε, t_g, f), and the user's class around it adds nothing."""
    noise = torch.randn(B, teacher.layout.length, teacher.token_dim)
    v = student.flow(noise, labels).velocity(noise[:, :, None], torch.full((*noise.shape[:2], 1), 0.4))[:, :, 0]
    expected = noise - 0.4 * v
    torch.testing.assert_close(student.generate(noise, labels, 0.4), expected)
    generator = OneStepGenerator(student, teacher.tokenizer, 0.4)
    torch.testing.assert_close(generator.sample(labels, noise), expected)
    seeded = [generator.sample(labels, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    with pytest.raises(ValueError, match="noise must be"):
        generator.sample(labels, noise[:, 1:])


def test_integrate_walk_conditions_on_what_it_made(teacher, student, labels):
    """Position after position by hand, with whole-sequence flows instead of a cache."""
    layout = teacher.layout
    noise = torch.randn(B, layout.length, teacher.token_dim)
    tokens = torch.zeros_like(noise)
    for position in range(layout.num_positions):
        ends = integrate(student.flow(tokens, labels), noise, euler_times(4))
        tokens[:, layout.span(position)] = ends[:, layout.span(position)]
    torch.testing.assert_close(integrate_walk(student.walk(labels), noise, 4), tokens, rtol=1e-4, atol=1e-4)


def test_the_backbone_of_a_table_has_one_token_a_position():
    """It shifts by one token, so the tokens of a larger position would see each other."""
    with pytest.raises(ValueError, match="one token a position"):
        CausalBackbone(Layout((1, 4)), token_dim=2, num_classes=1)


# --- the table teacher: exact ----------------------------------------------------------------------------------------


def conditional(joint, prefix):
    """P(next token | prefix) by adding up all sequences that begin so; joint (V, ..., V)."""
    V, mass = joint.shape[0], []
    for token in range(V):
        begins = (*prefix, token)
        rest = itertools.product(range(V), repeat=joint.ndim - len(begins))
        mass.append(sum(joint[begins + end].item() for end in rest))
    return torch.tensor(mass) / sum(mass)


def test_table_conditionals_are_exact():
    teacher = table_teacher(classes=2, codes=3, tokens=3)
    sequences = torch.tensor(list(itertools.product(range(3), repeat=3)))
    mixture = (teacher.joint[0] + teacher.joint[1]) / 2
    for joint, label, scale in [(teacher.joint[0], 0, None), (teacher.joint[1], 1, None), (mixture, 0, 0.0)]:
        labels = torch.full((len(sequences),), label)
        p = teacher.logits(sequences, labels, scale).softmax(-1)
        for b, i in itertools.product(range(len(sequences)), range(3)):
            torch.testing.assert_close(p[b, i], conditional(joint, tuple(sequences[b, :i].tolist())))


def test_table_conditionals_multiply_to_the_joint():
    teacher = table_teacher()
    sequences = torch.tensor(list(itertools.product(range(4), repeat=3)))
    log_p = teacher.flow(sequences, torch.ones(len(sequences), dtype=torch.long)).log_p
    chain = log_p.gather(-1, sequences[..., None]).sum((1, 2)).exp()
    torch.testing.assert_close(chain, teacher.joint[1].flatten())
    assert chain.sum().item() == pytest.approx(1, abs=1e-5)


def test_what_follows_an_impossible_prefix_is_finite():
    teacher = two_sequences()
    log_p = teacher.flow(torch.tensor([[0, 0]]), torch.tensor([0])).log_p
    assert log_p[0, 1].exp().tolist() == [1, 0]
    joint = torch.zeros(1, 2, 2)
    joint[0, 0, 0] = 1
    never = type(teacher)(joint, teacher.codebook).flow(torch.tensor([[1, 0]]), torch.tensor([0])).log_p
    assert never[0, 1].exp().tolist() == [0.5, 0.5]


def test_table_is_sampled_at_its_frequencies():
    teacher, samples = table_teacher(), 20_000
    labels = torch.arange(samples) % 2
    drawn = teacher.sample(labels, generator=torch.Generator().manual_seed(1))
    for label in range(2):
        # 64 sequences, 10,000 samples: a perfect sampler is 0.5 · sqrt(2 · 64 / (π · 10,000)) = 0.03 away at most
        assert teacher.total_variation(drawn[labels == label], label)[0] < 0.035
        assert teacher.total_variation(drawn[labels == label], 1 - label)[0] > 0.2


def test_guided_and_truncated_table_is_sampled_at_its_frequencies():
    teacher, samples = table_teacher(tokens=2), 20_000
    labels = torch.zeros(samples, dtype=torch.long)
    drawn = teacher.sample(labels, GUIDED, generator=torch.Generator().manual_seed(1))
    sequences = torch.tensor(list(itertools.product(range(4), repeat=2)))
    log_p = teacher.flow(sequences, labels[: len(sequences)], GUIDED).log_p
    expected = log_p.gather(-1, sequences[..., None]).sum((1, 2)).exp()
    frequency = torch.bincount(drawn[:, 0] * 4 + drawn[:, 1], minlength=16) / samples
    assert (frequency[expected == 0] == 0).all()
    assert (expected == 0).sum() == 16 - 9
    assert (frequency - expected).abs().sum() / 2 < 0.02


def test_total_variation_by_hand():
    teacher = two_sequences()
    drawn = torch.tensor([[0, 0], [0, 1], [1, 1], [0, 0]])
    assert teacher.total_variation(drawn) == (0.25, 0.25)
    assert teacher.total_variation(torch.tensor([[0, 0], [1, 1]])) == (0, 0)


def test_refinement_repairs_a_draft_of_two_sequences():
    """The last token of the draft contradicts the first; the teacher makes it agree."""
    teacher, labels = two_sequences(), torch.zeros(4, dtype=torch.long)
    draft = teacher.embed(torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1]]))
    assert teacher.snap(teacher.refine(draft, labels, 2)).tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]


def test_integrating_the_table_reproduces_its_joint():
    """DD1's map is a deterministic function of the noise whose image has the teacher's distribution."""
    teacher, samples = table_teacher(tokens=2), 8000
    labels = torch.zeros(samples, dtype=torch.long)
    tokens = integrate_walk(teacher.walk(labels), torch.randn(samples, 2, 2), steps=100)
    distance = torch.cdist(tokens, teacher.codebook).amin(-1)
    assert (distance < 1e-2).float().mean() > 0.98
    # sampling alone is 0.02 away at most (16 sequences); 100 Euler steps a token add about 0.01
    assert teacher.total_variation(teacher.snap(tokens))[0] < 0.04
    assert teacher.total_variation(teacher.snap(tokens), label=1)[0] > 0.2


# --- guidance and truncation -----------------------------------------------------------------------------------------


def test_guidance_extrapolates_from_the_null_label():
    teacher, labels = table_teacher(), torch.tensor([0, 1])
    indices = random_indices(teacher, 2)
    cond, uncond = teacher.logits(indices, labels), teacher.logits(indices, labels, 0.0)
    assert (cond - uncond).abs().min() > 1e-3
    torch.testing.assert_close(teacher.logits(indices, labels, 2.5), uncond + 2.5 * (cond - uncond))
    torch.testing.assert_close(teacher.logits(indices, labels, 1.0), cond)
    flow = teacher.flow(indices, labels, Sampling(guidance_scale=2.5, temperature=0.7))
    expected = ((uncond + 2.5 * (cond - uncond)) / 0.7).log_softmax(-1)
    torch.testing.assert_close(flow.log_p, expected)


def test_guidance_of_a_table_with_impossible_tokens():
    """log 0 - log 0 is not a number; such tokens stay impossible, and the others are guided as ever."""
    joint = torch.tensor([[[0.6, 0.0, 0.0], [0.0, 0.4, 0.0], [0.0] * 3], [[0.0, 0.3, 0.0], [0.7, 0.0, 0.0], [0.0] * 3]])
    teacher, indices = TableTeacher(joint, circle(3)), torch.tensor([[0, 0], [2, 0]])
    p = teacher.flow(indices, torch.tensor([0, 1]), Sampling(guidance_scale=2.0)).log_p.exp()
    raised = joint.sum(-1)[..., :2] ** 2 / joint.sum(-1).mean(0)[:2]
    torch.testing.assert_close(p[:, 0, :2], raised / raised.sum(-1, keepdim=True))
    assert (p[:, 0, 2] == 0).all()
    assert p[0, 1].tolist() == [1, 0, 0]
    torch.testing.assert_close(p[1, 1], torch.full((3,), 1 / 3))


def test_top_k_keeps_ties():
    logits = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0])
    cut = -torch.inf
    assert keep_likeliest(logits, 1).tolist() == [3, cut, cut, cut, cut]
    assert keep_likeliest(logits, 2).tolist() == [3, cut, 2, 2, cut]
    assert keep_likeliest(logits, 3).tolist() == [3, cut, 2, 2, cut]
    for everything in (0, 5, 9):
        assert torch.equal(keep_likeliest(logits, everything), logits)


def test_top_k_counts_every_row_for_itself():
    logits = torch.randn(2, 3, 20)
    kept = keep_likeliest(logits, 7).isfinite()
    assert (kept.sum(-1) == 7).all()
    assert logits[kept].view(2, 3, 7).min(-1).values.gt(logits.masked_fill(kept, -torch.inf).amax(-1)).all()


def nucleus(p, top_p):
    """The smallest set of most likely tokens whose mass exceeds ``top_p``, by a loop."""
    kept, mass = set(), 0.0
    for token in sorted(range(len(p)), key=lambda token: -p[token]):
        kept.add(token)
        mass += p[token]
        if mass > top_p:
            break
    return kept


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.8, 0.95])
@pytest.mark.parametrize("top_k", [0, 4])
def test_top_p_in_the_descending_convention(top_p, top_k):
    """After temperature and top-k; the token that carries the sum across stays."""
    teacher, logits = table_teacher(), 2 * torch.randn(2, 5, 9)
    truncated = teacher.truncate(logits, Sampling(top_k=top_k, top_p=top_p, temperature=0.8))
    survivors = keep_likeliest(logits / 0.8, top_k)
    for row, source in zip(truncated.flatten(0, 1), survivors.flatten(0, 1), strict=True):
        kept = set(row.isfinite().nonzero().flatten().tolist())
        assert kept == nucleus(source.double().softmax(-1).tolist(), top_p)
        assert torch.equal(row[row.isfinite()], source[row.isfinite()])


def test_top_p_of_one_keeps_all():
    logits = torch.randn(2, 3, 9)
    assert torch.equal(table_teacher().truncate(logits, Sampling()), logits)


IMPOSSIBLE = {
    "guidance_scale": (-1.0, math.nan, math.inf),
    "top_k": (-1, math.nan, math.inf),
    "top_p": (0.0, -0.5, 1.5, math.nan),
    "temperature": (0.0, -1.0, math.nan, math.inf),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in IMPOSSIBLE for value in IMPOSSIBLE[name]])
def test_impossible_sampling_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*, got {value}$"):
        Sampling(**{name: value})


def test_draw_inverts_the_distribution_function():
    """Cut tokens first and last: not even the outermost numbers may fall on them."""
    p = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    uniforms = torch.tensor([0.0, 0.249, 0.251, 0.749, 0.751, 1 - 2**-24])
    flow = CodebookFlow(torch.zeros(6, 1), p.log().expand(1, 6, 6))
    assert draw(flow, uniforms[None])[0].tolist() == [1, 1, 3, 3, 4, 4]


# --- a teacher without a codebook ------------------------------------------------------------------------------------


class ContinuousTeacher(Teacher):
    """A student in the role of the teacher: its tokens are continuous."""

    def __init__(self, student):
        super().__init__()
        self.student, self.backbone = student, student.backbone
        self.layout, self.num_classes, self.token_dim = student.layout, student.num_classes, student.token_dim

    @classmethod
    def from_config(cls, config):
        raise NotImplementedError

    def flow(self, tokens, labels, sampling=None):
        return self.student.flow(tokens, labels)

    def walk(self, labels, sampling=None, prefix=None):
        return self.student.walk(labels, prefix)

    def sample(self, labels, sampling=None, generator=None, prefix=None, uniforms=None, until=None):
        noise = torch.randn(len(labels), self.layout.length, self.token_dim, generator=generator)
        return integrate_walk(self.walk(labels, prefix=prefix), noise, 10)


def test_a_continuous_teacher_has_students(student, labels):
    """Flow, walk, samples and one-step generation, without a codebook anywhere."""
    teacher = ContinuousTeacher(student)
    tokens = teacher.sample(labels)
    assert tokens.shape == (B, teacher.layout.length, teacher.token_dim)
    assert torch.equal(teacher.embed(tokens), tokens)
    times = torch.tensor(0.5).expand(*tokens.shape[:2], 1)
    whole = teacher.flow(tokens, labels).velocity(tokens[:, :, None], times)
    walk = teacher.walk(labels)
    for flow in walk:
        span = walk.span
        torch.testing.assert_close(flow.velocity(tokens[:, span, None], times[:, span]), whole[:, span])
        walk.append(tokens[:, span])
    assert build_student(teacher, width=16, depth=1).generate(tokens, labels).shape == tokens.shape


def test_what_needs_a_codebook_says_so():
    teacher = ContinuousTeacher(student_of(table_teacher()).requires_grad_(False))
    generator = OneStepGenerator(teacher.student, table_teacher().tokenizer, 1.0)
    message = "this needs a teacher with a codebook; ContinuousTeacher has none"
    for call in (
        lambda: require_codebook(teacher),
        lambda: generator.sampler(2, teacher),
        lambda: sequence_nll(teacher, torch.zeros(1, 3, dtype=torch.long), torch.tensor([0])),
    ):
        with pytest.raises(InputTypeError, match=message):
            call()
    known = table_teacher()
    assert require_codebook(known) is known
