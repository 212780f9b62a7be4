"""DD1, the baseline: against the public release, and what its networks may depend on."""

import pytest
import torch

from dd2_lightning.errors import InputTypeError
from dd2_lightning.models.dd1 import DD1Generator, DD1Prediction, DD1Student, joined, trajectory_point
from dd2_lightning.models.llamagen import LlamaGenTeacher
from dd2_lightning.models.llamagen import from_release as llamagen_state
from dd2_lightning.models.teacher import CodebookTeacher
from dd2_lightning.models.var import VARSampling, VARTeacher
from dd2_lightning.models.var import from_release as var_state
from dd2_lightning.sampling import Sampling
from helpers import circle
from reference import close, golden
from teachers import FAMILIES, labels_for, randomise, student_of, table_teacher, var_teacher

TOLERANCE = 1e-5


def part(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """One of the state dicts in a golden file."""
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def golden_var_teacher(tensors, sizes) -> VARTeacher:
    teacher = VARTeacher.from_config(
        {
            "sides": sizes["patch_nums"],
            "codes": sizes["V"],
            "token_dim": sizes["C"],
            "num_classes": sizes["num_classes"],
            "width": sizes["width"],
            "depth": sizes["depth"],
            "heads": sizes["heads"],
            "num_phi": sizes["share_quant_resi"],
            "l2_norm": sizes["attn_l2_norm"],
            "ch": 32,
            "ch_mult": [1],
            "num_res_blocks": 1,
            "pixels": False,
        }
    )
    teacher.load_state_dict(var_state(part(tensors, "teacher"), part(tensors, "vae")))
    return teacher


def golden_llamagen_teacher(tensors, sizes) -> LlamaGenTeacher:
    teacher = LlamaGenTeacher.from_config(
        {
            "grid": sizes["grid"],
            "codes": sizes["V"],
            "token_dim": sizes["C"],
            "num_classes": sizes["num_classes"],
            "width": sizes["dim"],
            "depth": sizes["layers"],
            "heads": sizes["heads"],
            "multiple_of": sizes["ffn_multiple_of"],
            "rope_base": sizes["rope_base"],
            "norm_eps": sizes["norm_eps"],
            "ch": 32,
            "encoder_ch_mult": [1],
            "decoder_ch_mult": [1],
            "num_res_blocks": 1,
            "z_channels": 8,
            "pixels": False,
        }
    )
    tokenizer = {"quantize.embedding.weight": tensors["in/codebook"]}
    teacher.load_state_dict(llamagen_state(part(tensors, "teacher"), tokenizer))
    return teacher


class Golden:
    """A golden file: the release's inputs and outputs, and our models with its weights."""

    def __init__(self, family: str):
        self.tensors, self.sizes = golden(f"dd1_{family}_tiny")
        build = {"var": golden_var_teacher, "llamagen": golden_llamagen_teacher}[family]
        self.teacher = build(self.tensors, self.sizes).requires_grad_(False).eval()
        student, weights = self.teacher.dd1_student(), part(self.tensors, "weights")
        assert weights.keys() - student.state_dict().keys() <= {"lvl_1L", "attn_bias_for_masking"}
        student.load_state_dict({key: weights.get(key, value) for key, value in student.state_dict().items()})
        assert {key for key, _ in student.named_parameters()} <= weights.keys()
        sizes = self.sizes
        self.generator = DD1Generator(student, self.teacher.tokenizer, sizes["split_t"], sizes["t_second"])
        self.generator.requires_grad_(False).eval()
        self.noise, self.labels = self.tensors["in/noise"], self.tensors["in/labels"]

    def combined(self, sampling: Sampling) -> torch.Tensor:
        return self.generator.refine(
            self.labels, self.teacher, self.sizes["teacher_start"], sampling=sampling, noise=self.noise
        )


@pytest.fixture(scope="module", params=["var", "llamagen"])
def released(request):
    return Golden(request.param)


# --- against the release ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["t0", "second", "mixed"])
def test_calls_of_the_release(released, call):
    t = {"t0": 0, "second": released.sizes["t_second"], "mixed": released.tensors["fwd/mixed/t"]}[call]
    name = {"t0": "t0", "second": f"t{released.sizes['t_second']}", "mixed": "mixed"}[call]
    expected = part(released.tensors, f"fwd/{name}")
    x = trajectory_point(released.generator.layout, torch.full_like(released.noise, 0.25), released.noise, t)
    assert torch.equal(x, expected["x_in"])
    tokens, logits = released.generator.student(x, released.labels, t)
    close(tokens, expected["tokens"], TOLERANCE)
    close(logits, expected["logits"], TOLERANCE)


@pytest.mark.parametrize("steps", [1, 2])
def test_samples_of_the_release(released, steps):
    tokens = released.generator.sample(released.labels, released.noise, steps=steps)
    close(tokens, released.tensors[f"step{steps}/sequence"], TOLERANCE)
    decoded = {"var": "f_hat", "llamagen": "latent_BCHW"}[released.sizes["kind"].removeprefix("dd1-")]
    latents = released.teacher.tokenizer.latent_map(tokens)
    close(latents, released.tensors[f"step{steps}/{decoded}"], TOLERANCE)


def test_codes_nearest_to_a_sample_of_the_release(released):
    indices = released.teacher.snap(released.generator.sample(released.labels, released.noise))
    assert torch.equal(indices, released.tensors["combine/quantised_idx"])


def test_the_teacher_in_the_middle_of_llamagen():
    released = Golden("llamagen")
    sampling = Sampling(guidance_scale=released.sizes["teacher_cfg"], top_k=1)
    start, second = released.sizes["teacher_start"], released.sizes["t_second"]
    prefix = released.tensors["combine/quantised_idx"][:, :start]
    drawn = released.teacher.sample(released.labels, sampling, prefix=prefix, until=second)
    assert torch.equal(drawn, released.tensors["combine/teacher_idx"])
    close(released.combined(sampling), released.tensors["combine/sequence"], TOLERANCE)


@pytest.mark.parametrize("slip", [False, True])
def test_the_teacher_in_the_middle_of_var(slip):
    released = Golden("var")
    name = "ref" if slip else "masked"
    sampling = VARSampling(guidance_scale=released.sizes["teacher_cfg"], top_k=1, unmasked_prefix=slip)
    start, second = released.sizes["teacher_start"], released.sizes["t_second"]
    prefix = released.tensors["combine/quantised_idx"][:, : released.teacher.layout.offsets[start]]
    drawn = released.teacher.embed(released.teacher.sample(released.labels, sampling, prefix=prefix, until=second))
    close(drawn, released.tensors[f"combine/teacher_sequence_{name}"], TOLERANCE)
    close(released.combined(sampling), released.tensors[f"combine/sequence_{name}"], TOLERANCE)
    ours, theirs = (released.tensors[f"combine/teacher_sequence_{which}"] for which in ("masked", "ref"))
    assert (ours - theirs).abs().max() > 0.1
