"""Networks in bfloat16, everything else in float32; the flags of a run change how it is computed, not what."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from dd2_lightning.models.codebook import nearest_code
from dd2_lightning.models.student import build_student
from dd2_lightning.stages import CSDDistill
from dd2_lightning.stages.execution import Execution, blocks_of
from runs import STAGES, any_config, fit, two_sequences
from teachers import llamagen_teacher, var_teacher
from watching import watch_losses


def weights(directory):
    return torch.load(directory / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def run(root, stage, directory, *args, **model):
    fit(any_config(root, stage, directory, **model), directory.parent, *args)
    return weights(directory)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_in_bfloat16(root, tmp_path, monkeypatch, stage):
    """Networks compute in bfloat16, losses are float32, weights stay float32 and go where they go in float32."""
    losses, products = set(), set()
    linear = nn.functional.linear

    def spy_linear(*args):
        products.add((result := linear(*args)).dtype)
        return result

    full = run(root, stage, tmp_path / "full")
    watch_losses(monkeypatch, lambda stage, update, batch, k, found: losses.add(found.loss.dtype))
    monkeypatch.setattr(nn.functional, "linear", spy_linear)
    mixed = run(root, stage, tmp_path / "mixed", "--trainer.precision", "bf16-mixed")
    assert losses == {torch.float32} and torch.bfloat16 in products
    changed = 0
    for key, value in full.items():
        assert mixed[key].dtype == value.dtype
        changed += not torch.equal(mixed[key], value)
        torch.testing.assert_close(mixed[key], value, rtol=0, atol=0.05)
    assert changed


def losses_of(root, directory, remember) -> list[float]:
    """Losses of two guidance updates on the same noise, under an autocast that keeps what it has cast, or does not."""
    seen = []
    original = CSDDistill.guidance_loss

    def guidance_loss(self, batch, k):
        losses = original(self, batch, 0)
        seen.append(losses.loss.mean().item())
        return losses

    def autocast(self):
        return torch.autocast(self.device, dtype=torch.bfloat16, cache_enabled=remember)

    adam = {"lr": 0.1, "betas": [0.0, 0.95]}
    arguments = ("--trainer.precision", "bf16-mixed", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CSDDistill, "guidance_loss", guidance_loss)
        patch.setattr(MixedPrecision, "autocast_context_manager", autocast)
        run(root, "csd", directory, *arguments, guidance_updates=2, guidance_optimizer=adam)
    return seen


@pytest.mark.parametrize("cleared", [True, False])
def test_an_update_sees_the_weights_of_the_one_before(root, tmp_path, monkeypatch, cleared):
    """Lightning switches autocast's cache off for now. With it, stale weights would serve the second update."""
    truth = losses_of(root, tmp_path / "truth", remember=False)
    if not cleared:
        monkeypatch.setattr(torch, "clear_autocast_cache", lambda: None)
    found = losses_of(root, tmp_path / "found", remember=True)
    assert found[0] == truth[0] and truth[1] != truth[0]
    assert (found[1] == truth[1]) == cleared


def test_nearest_codes_are_not_rounded():
    codebook = torch.tensor([[1.0, 3.0], [1.01, 3.0]])
    with torch.autocast("cpu", torch.bfloat16):
        assert nearest_code(codebook, codebook).tolist() == [0, 1]


# --- how networks are run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [two_sequences, var_teacher, llamagen_teacher])
def test_recomputed_activations_are_not_stored_and_change_nothing(make):
    teacher = make()
    grown = {}
    for flag in (False, True):
        torch.manual_seed(0)
        student = build_student(teacher, width=16, depth=3)
        nn.init.normal_(student.head.output.weight)
        for network in (student.backbone, student.head):
            assert blocks_of(network)
            Execution(activation_checkpointing=flag).apply(network)
        stored = []
        tokens = torch.randn(4, student.layout.length, student.backbone.token_dim, generator=torch.Generator())
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=stored: s.append(t.numel()) or t, lambda t: t):
            q = student.generate(tokens, torch.zeros(4, dtype=torch.long))
        q.square().mean().backward()
        grown[flag] = sum(stored), q, {name: p.grad for name, p in student.named_parameters()}
    assert grown[True][0] < grown[False][0] / 2
    assert torch.equal(grown[True][1], grown[False][1])
    for name, gradient in grown[False][2].items():
        torch.testing.assert_close(grown[True][2][name], gradient, msg=name)


def test_flags_change_no_result(root, tmp_path):
    plain = run(root, "csd", tmp_path / "plain")
    recomputed = run(root, "csd", tmp_path / "recomputed", "--execution.activation_checkpointing", "true")
    assert all(torch.equal(value, recomputed[key]) for key, value in plain.items())
    compiled = run(root, "csd", tmp_path / "compiled", "--execution.compile", "eager", "--trainer.max_steps", "1")
    short = run(root, "csd", tmp_path / "short", "--trainer.max_steps", "1")
    for key, value in short.items():
        torch.testing.assert_close(compiled[key], value, rtol=0, atol=1e-4)
