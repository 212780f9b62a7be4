"""LlamaGen's tokenizer: against the public release, and its training."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dd2_lightning.errors import PixelsMissingError
from dd2_lightning.families.llamagen.config import LlamaGenConfig
from dd2_lightning.families.llamagen.tokenizer import SphereVQ, as_map
from dd2_lightning.images.files import to_bytes
from dd2_lightning.images.npz import write_images
from dd2_lightning.models.convnets import Upsample
from reference import close, golden_llamagen
from teachers import llamagen_teacher, var_teacher
from toys import check_training, idle_parameters, stripes


def small(**sizes) -> SphereVQ:
    """A tokenizer of images (1, 4, 4): 4 tokens of 2x2 pixels."""
    shape = {"grid": 2, "codes": 8, "token_dim": 4, "encoder_ch_mult": (1, 1), "decoder_ch_mult": (1, 1)}
    shape |= {"ch": 32, "num_res_blocks": 1, "z_channels": 8, "image_channels": 1}
    transformer = {"num_classes": 1, "width": 8, "depth": 1, "heads": 1}
    return SphereVQ(LlamaGenConfig(**{**shape, **transformer, **sizes}))


@pytest.fixture(scope="module")
def released():
    teacher, _, tensors = golden_llamagen()
    return teacher, tensors


# --- against the release ---------------------------------------------------------------------------------------------


def test_pictures_of_the_release(released, tmp_path):
    """Vectors, the decoder's input, its unclamped output, and the bytes that a user writes."""
    teacher, tensors = released
    tokenizer, codes = teacher.tokenizer, tensors["codes"]
    latents = tokenizer.latent_map(teacher.embed(codes))
    close(latents, tensors["quant"], 1e-6)
    close(tokenizer.post_quant_conv(latents), tensors["post_quant"])
    close(tokenizer.decode_map(latents), tensors["image"])
    close(teacher.decode(codes), (tensors["image"].clamp(-1, 1) + 1) / 2)
    pixels = to_bytes(teacher.decode(codes)).permute(0, 2, 3, 1).numpy()
    write_images(tmp_path / "pictures.npz", pixels.shape, [pixels])
    written = np.load(tmp_path / "pictures.npz")["arr_0"]
    assert np.array_equal(written, tensors["image_uint8"].permute(0, 2, 3, 1).numpy())


def test_the_picture_of_greedy_tokens(released):
    teacher, tensors = released
    latents = teacher.tokenizer.latent_map(teacher.embed(tensors["greedy_tokens"]))
    close(teacher.tokenizer.decode_map(latents), tensors["greedy_image"])


def test_codes_of_the_release(released):
    teacher, tensors = released
    tokenizer, images = teacher.tokenizer, (tensors["enc_img"] + 1) / 2
    close(tokenizer.quant_conv(tokenizer.encoder(tensors["enc_img"])), tensors["enc_pre_quant"])
    close(tokenizer.latents(images), F.normalize(tensors["enc_pre_quant"], dim=1))
    indices = teacher.encode(images)
    assert torch.equal(indices, tensors["enc_idx"])
    quant = tokenizer.latent_map(teacher.embed(indices))
    close(quant, tensors["enc_quant"], 1e-6)
    close(tokenizer.decode_map(quant), tensors["recon"])


# --- without pixels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [llamagen_teacher, var_teacher])
def test_a_bare_codebook_can_be_distilled_and_not_looked_at(make):
    whole = make()
    bare = type(whole).from_config({**whole.config, "pixels": False})
    kept = {key: value for key, value in whole.state_dict().items() if key in bare.state_dict()}
    bare.load_state_dict(kept)
    assert not any("encoder" in key or "decoder" in key or "_conv." in key for key in kept)
    assert len(kept) < len(whole.state_dict())
    indices, labels = torch.randint(12, (3, whole.layout.length)), torch.arange(3)
    assert torch.equal(bare.logits(indices, labels), whole.logits(indices, labels))
    side = whole.tokenizer.image_shape[-1]
    for call in (lambda: bare.decode(indices), lambda: bare.encode(torch.zeros(1, 1, side, side))):
        with pytest.raises(PixelsMissingError, match="no encoder and decoder"):
            call()


# --- the codebook ----------------------------------------------------------------------------------------------------


def test_stored_codes_have_any_length(released):
    """Normalised when they are read; scaling them changes nothing."""
    teacher, tensors = released
    tokenizer = copy.deepcopy(teacher.tokenizer)
    stored = tokenizer.quantize.embedding.weight
    assert (stored.norm(dim=-1) - 1).abs().min() > 1e-3
    close(tokenizer.codebook.norm(dim=-1), torch.ones(64), 1e-6)
    stored.mul_(torch.rand(64, 1) + 0.5)
    close(tokenizer.codebook, teacher.codebook, 1e-6)
    assert torch.equal(tokenizer.encode((tensors["enc_img"] + 1) / 2), tensors["enc_idx"])


def test_the_length_of_tokens_changes_no_picture_and_no_code():
    unit, long, images = small(), small(code_norm=4.0), torch.rand(3, 1, 4, 4)
    long.load_state_dict(unit.state_dict())
    close(long.codebook, 4 * unit.codebook, 1e-6)
    indices = unit.encode(images)
    assert torch.equal(long.encode(images), indices)
    close(long.decode(long.codebook[indices]), unit.decode(unit.codebook[indices]), 1e-6)


def test_doubling_is_nearest_neighbour_and_a_convolution():
    """One transposed convolution, and the two layers of the release, value and gradient."""
    layer, x = Upsample(4).double(), torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    plain = layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(layer(x), plain)
    probe, inputs = torch.randn_like(plain), (x, *layer.parameters())
    torch.testing.assert_close(torch.autograd.grad(layer(x), inputs, probe), torch.autograd.grad(plain, inputs, probe))


def test_maps_are_row_major():
    vectors = torch.randn(2, 9, 4)
    assert torch.equal(as_map(vectors)[1, :, 2, 1], vectors[1, 7])


# --- training --------------------------------------------------------------------------------------------------------


def test_a_little_training_reduces_the_error():
    # at full resolution: on a map of 2x2 cells the group norms leave little of a grey
    check_training(small(grid=4, encoder_ch_mult=(1,), decoder_ch_mult=(1,)), iterations=40)


def test_every_parameter_is_trained():
    """The encoder through the straight-through estimator, chosen codes through the codebook loss."""
    assert idle_parameters(small()) == []


def test_dead_codes_become_latents():
    tokenizer, images = small(), stripes(128)
    with torch.no_grad():
        tokenizer.quantize.embedding.weight[3:] = torch.tensor([-1.0, 0.0, 0.0, 0.0])
        before = tokenizer.codebook.clone()
    tokenizer.training_losses(images)
    assert torch.equal(tokenizer.codebook, before)
    tokenizer.training_losses(images, torch.Generator().manual_seed(5)).loss.backward()
    changed = (tokenizer.codebook != before).any(-1)
    assert changed.any()
    latents = tokenizer.latents(images).permute(0, 2, 3, 1).reshape(-1, 4)
    assert torch.cdist(tokenizer.codebook[changed], latents).amin(-1).max() < 1e-3


def test_a_fixed_length_is_not_rescaled():
    tokenizer = small()
    before = tokenizer.codebook.clone()
    tokenizer.rescale_codebook(2.0)
    assert torch.equal(tokenizer.codebook, before)
