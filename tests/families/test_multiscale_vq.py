"""The multi-scale tokenizer: against the public release, its training losses, its rescaling."""

import copy

import pytest
import torch
import torch.nn.functional as F

from dd2_lightning.families.var.config import VARConfig
from dd2_lightning.families.var.pyramid import ScalePyramid, phi_index
from dd2_lightning.families.var.tokenizer import MultiScaleVQ
from reference import close, golden, golden_var, weights
from toys import check_training, idle_parameters, stripes

TRANSFORMER = {"num_classes": 1, "width": 8, "depth": 1, "heads": 1}


def small(**sizes) -> MultiScaleVQ:
    """A tokenizer of images (1, 4, 4): 21 tokens in 3 scales."""
    defaults = {"sides": (1, 2, 4), "codes": 8, "token_dim": 4, "ch": 32, "ch_mult": (1,), **TRANSFORMER}
    defaults |= {"num_res_blocks": 1, "image_channels": 1, "num_phi": 2}
    return MultiScaleVQ(VARConfig(**{**defaults, **sizes}))


# --- against the release ---------------------------------------------------------------------------------------------


def test_phi_of_every_number_of_scales():
    """Including the exact ties of ten scales, which float64 rounding decides."""
    table = golden("var_quant_10scales")[0]["phi_table"]
    for K in range(2, 17):
        assert phi_index(K, 4) == tuple(table[K, :K].tolist())
    assert phi_index(10, 4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
    assert phi_index(3, 2) == (0, 0, 1)
    assert phi_index(5, 1) == (0,) * 5


@pytest.mark.parametrize("name", ["var_quant_10scales", "var_tiny"])
@pytest.mark.parametrize("frozen", [False, True])
def test_maps_and_next_inputs(name, frozen):
    tensors, sizes = golden(name)
    state = weights(tensors, "vae")
    pyramid = ScalePyramid(tuple(sizes["patch_nums"]), sizes["Cvae"], frozen=frozen)
    phi = "quantize.quant_resi."
    pyramid.load_state_dict({key.removeprefix(phi): value for key, value in state.items() if key.startswith(phi)})
    assert pyramid.phi_of_scale == tuple(tensors["phi_index_per_scale"].tolist())
    q = state["quantize.embedding.weight"][tensors["idx"]]
    f_hat, inputs = None, []
    for k in range(len(pyramid.sides)):
        f_hat = pyramid.accumulate(f_hat, q[:, pyramid.layout.span(k)], k)
        close(f_hat, tensors["fhat_per_scale"][:, k])
        if k + 1 < len(pyramid.sides):
            inputs.append(pyramid.area_down(f_hat, k + 1))
    close(torch.cat(inputs, 1), tensors["tf_input"])
    close(pyramid(q), f_hat)


def test_pictures_of_the_release():
    teacher, tensors = golden_var("var_tiny")
    close(teacher.decode(tensors["idx"]), (tensors["img_from_idx"] + 1) / 2)
    close(teacher.decode(tensors["ar_idx"]), tensors["ar_img_01"])
    close(teacher.tokenizer.decode_map(tensors["fhat_per_scale"][:, -1]), tensors["img_from_idx_unclamped"])
    close(teacher.decode(tensors["idx"][:, :1]), (tensors["img_from_fhat_scale0"] + 1) / 2)


def test_codes_of_the_release():
    teacher, tensors = golden_var("var_tiny")
    images = (tensors["enc_img"] + 1) / 2
    close(teacher.tokenizer.latents(images), tensors["enc_f"])
    assert torch.equal(teacher.encode(images), tensors["enc_idx"])
    close(teacher.decode(teacher.encode(images)), (tensors["enc_recon"] + 1) / 2)


def test_released_size():
    """Parameters of vae_ch160v4096z32, whose file counts no usage statistics among them."""
    with torch.device("meta"):
        sizes = {"codes": 4096, "token_dim": 32, "ch": 160, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2}
        tokenizer = MultiScaleVQ(VARConfig(sides=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16), **sizes, **TRANSFORMER))
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 108_948_355
    assert len(tokenizer.state_dict()) == 323
    assert tokenizer.image_shape == (3, 256, 256)


# --- pyramid ---------------------------------------------------------------------------------------------------------


def test_interpolation_is_the_frameworks():
    pyramid = ScalePyramid((1, 2, 3, 5), 4)
    tokens, f = torch.randn(2, 9, 4), torch.randn(2, 4, 5, 5)
    up = F.interpolate(tokens.transpose(1, 2).reshape(2, 4, 3, 3), size=(5, 5), mode="bicubic")
    close(pyramid.upsample(tokens, 2), up, 1e-6)
    close(pyramid.area_down(f, 2), F.interpolate(f, size=(3, 3), mode="area").flatten(2).transpose(1, 2), 1e-6)


def test_maps_are_affine_and_differentiable_in_the_tokens():
    pyramid = ScalePyramid((1, 2, 3), 2).double()
    a, b = torch.randn(2, 3, 14, 2, dtype=torch.float64)
    close(pyramid(0.3 * a + 0.7 * b), 0.3 * pyramid(a) + 0.7 * pyramid(b), 1e-12)
    assert torch.autograd.gradcheck(pyramid, a[:1].clone().requires_grad_())
    assert pyramid(torch.zeros(1, 14, 2, dtype=torch.float64)).abs().max() > 0  # phi's bias remains


def test_float32_inside_autocast():
    pyramid, tokens = ScalePyramid((1, 2, 3), 2), torch.randn(2, 14, 2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = pyramid(tokens), pyramid.area_down(pyramid(tokens), 1)
    torch.testing.assert_close(inside[0], pyramid(tokens))
    assert inside[1].dtype == torch.float32


def test_a_frozen_pyramid_has_no_parameters():
    frozen, free = ScalePyramid((1, 2), 4, frozen=True), ScalePyramid((1, 2), 4)
    assert not list(frozen.parameters())
    assert frozen.state_dict().keys() == free.state_dict().keys()
    frozen.load_state_dict(free.state_dict())
    tokens = torch.randn(1, 5, 4)
    torch.testing.assert_close(frozen(tokens), free(tokens))


@pytest.mark.parametrize("sides", [(), (0, 1), (1, 1), (2, 1)])
def test_sides_have_to_increase(sides):
    with pytest.raises(ValueError, match="sides"):
        ScalePyramid(sides, 4)


# --- training --------------------------------------------------------------------------------------------------------


def test_a_little_training_reduces_the_error():
    last = check_training(small(), iterations=30)
    assert 1 <= last.perplexity <= 8
    assert len(last.loss.shape) == 0


def test_every_parameter_is_trained():
    """The encoder through the straight-through estimator; chosen codes and phi through the codebook loss."""
    assert idle_parameters(small()) == []


def test_dead_codes_are_seeded_again_the_same_way():
    tokenizer, images = small(), stripes(128)
    with torch.no_grad():
        tokenizer.codebook[3:] += 100
    before = tokenizer.codebook.clone()
    tokenizer.training_losses(images)
    assert torch.equal(tokenizer.codebook, before)
    twin = copy.deepcopy(tokenizer)
    for model in (tokenizer, twin):
        model.training_losses(images, torch.Generator().manual_seed(5)).loss.backward()
    assert torch.equal(tokenizer.codebook, twin.codebook)
    chosen = tokenizer.encode(images).unique()
    assert len(chosen) > 1
    assert tokenizer.codebook[3:].abs().max() < 50


# --- rescaling -------------------------------------------------------------------------------------------------------


def test_rescaling_changes_no_picture_and_no_code():
    tokenizer, images = small().requires_grad_(False), stripes(16)
    for phi in tokenizer.pyramid.qresi_ls:
        phi.bias.normal_()
    indices, f = tokenizer.encode(images), tokenizer.latents(images)
    pictures = tokenizer.decode(tokenizer.codebook[indices])
    maps = tokenizer.pyramid(tokenizer.codebook[indices])
    before = tokenizer.codebook.square().mean().sqrt()
    tokenizer.rescale_codebook(0.7)
    torch.testing.assert_close(tokenizer.codebook.square().mean().sqrt(), torch.tensor(0.7))
    factor = 0.7 / before
    assert torch.equal(tokenizer.encode(images), indices)
    close(tokenizer.decode(tokenizer.codebook[indices]), pictures, 1e-6)
    torch.testing.assert_close(tokenizer.latents(images), factor * f)
    torch.testing.assert_close(tokenizer.pyramid(tokenizer.codebook[indices]), factor * maps)


def test_rescaling_needs_a_scale():
    with pytest.raises(ValueError, match="rms"):
        small().rescale_codebook(0.0)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_widths_that_the_norms_cannot_group():
    with pytest.raises(ValueError, match=r"ch.*multiple of 4.* 30"):
        small(ch=30)


@pytest.mark.parametrize(("ch", "groups"), [(8, 2), (48, 12), (64, 32)])
def test_groups_of_narrow_norms(ch, groups):
    assert small(ch=ch).encoder.conv_in.out_channels == ch
    assert small(ch=ch).encoder.down[0].block[0].norm1.num_groups == groups


def test_pictures_of_another_size():
    with pytest.raises(ValueError, match=r"\(B, \*\(1, 4, 4\)\), got \(2, 1, 8, 8\)"):
        small().encode(torch.rand(2, 1, 8, 8))
