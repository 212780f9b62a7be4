"""Published checkpoint files: the right ones become teachers with the right logits, all others are refused."""

import argparse
import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dd2_lightning as dd2
from dd2_lightning.artifacts import difference
from dd2_lightning.cli import main
from dd2_lightning.errors import ArtifactError
from dd2_lightning.families.registry import FAMILIES, build_meta
from dd2_lightning.hub.cards import load_card, published
from dd2_lightning.hub.checkpoint import read_checkpoint
from dd2_lightning.hub.convert import load_release
from reference import GOLDEN, close, golden, release_files
from runs import fails

PUBLISHED = [family.name for family in FAMILIES.values() if family.published]


class Files:
    """Files as a release publishes them, made of the golden tensors, and the command that converts them."""

    def __init__(self, root: Path, family: str, options: tuple = (), name: str | None = None):
        paths = release_files(root, family, name)
        self.root, self.family, self.options = root / family, family, options
        self.tensors = {role: torch.load(paths[f"{role}.pth"]) for role in ("transformer", "tokenizer")}
        self.config = json.loads(paths["sizes.json"].read_text())

    def convert(self, *options: str, **given: str) -> Path:
        """``dd2 convert FAMILY``; ``given`` are other files, sizes or directories."""
        output = self.root / "teacher"
        paths = {role: str(self.root / f"{role}.pth") for role in self.tensors}
        values = {**paths, "arch": str(self.root / "sizes.json"), "output": str(output), **given}
        words = [word for key, value in values.items() for word in (f"--{key}", value)]
        main(["convert", self.family, *words, *self.options, *options])
        return output

    def refused(self, capsys, status: int, *words: str, options: tuple = (), **given: str) -> None:
        """The conversion fails, says these words and leaves no teacher."""
        with fails(capsys, status, *words):
            self.convert(*options, **given)
        assert not (self.root / "teacher" / "config.json").exists()

    def write(self, name: str, content) -> str:
        """Another checkpoint file."""
        torch.save(content, self.root / name)
        return str(self.root / name)


@pytest.fixture
def var(tmp_path):
    return Files(tmp_path, "var")


@pytest.fixture
def llamagen(tmp_path):
    return Files(tmp_path, "llamagen", ("--grid", "4"))


@pytest.fixture(params=["var", "llamagen"])
def files(request):
    return request.getfixturevalue(request.param)


# --- what converts ---------------------------------------------------------------------------------------------------


def test_a_converted_var_has_the_logits_of_the_release(var):
    teacher = dd2.load_teacher(var.convert())
    tensors, _ = golden("var_tiny")
    close(teacher.logits(tensors["idx"], tensors["label"]), tensors["tf_logits_cond"])
    close(teacher.decode(tensors["ar_idx"]), tensors["ar_img_01"])
    config = json.loads((var.root / "teacher/config.json").read_text())
    assert config["stage"] == "teacher" and config["family"] == "var"
    assert config["source"]["release"] == "VAR" and len(config["source"]["transformer"]["sha256"]) == 64


def test_a_converted_llamagen_has_the_logits_of_the_release(llamagen):
    teacher = dd2.load_teacher(llamagen.convert())
    (gpt, _), (vq, _) = golden("llamagen_tiny"), golden("llamagen_vq_tiny")
    close(teacher.logits(gpt["tokens"], gpt["label"]), gpt["tf_logits_cond"])
    pictures = teacher.tokenizer.decode(teacher.embed(vq["codes"].flatten(1)))
    close(pictures, (vq["image"].clamp(-1, 1) + 1) / 2)
    config = json.loads((llamagen.root / "teacher/config.json").read_text())
    assert config["family"] == "llamagen" and config["architecture"]["grid"] == 4


@pytest.mark.parametrize("name", ["var_tiny_shared_aln", "var_tiny_no_l2norm"])
def test_a_tokenizer_without_pixels(name, tmp_path, capsys):
    tensors, _ = golden(name)
    files = Files(tmp_path, "var", name=name)
    files.refused(capsys, 1, "tokenizer.pth", "holds the quantiser only", "--latent-only")
    teacher = dd2.load_teacher(files.convert("--latent-only"))
    close(teacher.logits(tensors["idx"], tensors["label"]), tensors["tf_logits_cond"])
    assert not teacher.tokenizer.has_images
    with pytest.raises(dd2.errors.DD2Error, match="--latent-only"):
        teacher.decode(tensors["idx"])
    with pytest.raises(dd2.errors.DD2Error, match="no encoder"):
        teacher.encode(torch.zeros(1, 3, 8, 8))


def test_latent_only_ignores_the_pixels_of_a_full_file(files):
    teacher = dd2.load_teacher(files.convert("--latent-only"))
    assert not [key for key in teacher.state_dict() if "decoder" in key]


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", "ddp", "training", "safetensors", "half"])
def test_wrappers(files, wrapper):
    path = files.root / "wrapped.pth"
    plain = files.tensors["transformer"]
    wrapped = {
        "ddp": {"module." + key: value for key, value in plain.items()},
        "training": {"model": plain, "optimizer": {"state": {}}, "steps": 3, "args": argparse.Namespace(lr=1e-4)},
        "half": {key: value.half() if value.is_floating_point() else value for key, value in plain.items()},
    }.get(wrapper, {wrapper: plain})
    if wrapper == "safetensors":
        path = files.root / "wrapped.safetensors"
        save_file(plain, path)
    else:
        torch.save(wrapped, path)
    teacher = dd2.load_teacher(files.convert(transformer=str(path)))
    assert {value.dtype for value in teacher.parameters()} == {torch.float32}
    expected = dd2.load_teacher(files.convert())
    for key, value in expected.state_dict().items():
        close(teacher.state_dict()[key], value, 2e-2 if wrapper == "half" else 0)


def test_a_training_checkpoint_of_var(var):
    both = {"epoch": 1, "trainer": {"var_wo_ddp": var.tensors["transformer"], "vae_local": var.tensors["tokenizer"]}}
    path = var.write("ar-ckpt-last.pth", both)
    expected = load_file(var.convert() / "teacher.safetensors")
    found = load_file(var.convert(transformer=path, tokenizer=path) / "teacher.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_what_a_run_of_llamagen_leaves_in_a_file(llamagen):
    """Rotations, mask and caches are no weights, and are dropped."""
    more = {
        "freqs_cis": torch.ones(3),
        "causal_mask": torch.ones(2),
        "layers.0.attention.kv_cache.k_cache": torch.ones(1),
    }
    expected = load_file(llamagen.convert() / "teacher.safetensors")
    path = llamagen.write("x.pt", llamagen.tensors["transformer"] | more)
    found = load_file(llamagen.convert(transformer=path) / "teacher.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


# --- bad files -------------------------------------------------------------------------------------------------------


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_refused_and_not_executed(files, capsys, legacy):
    marker, path = files.root / "executed", files.root / "evil.pth"
    content = {**files.tensors["transformer"], "extra": Malicious(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    files.refused(capsys, 1, "--transformer", "evil.pth", "system", "not opened", transformer=str(path))
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # it would have run


@pytest.mark.parametrize("part", [0, 3, 0.2, 0.9])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(files, capsys, kind, part):
    path = files.root / ("cut.safetensors" if kind == "safetensors" else "cut.pth")
    if kind == "safetensors":
        save_file(files.tensors["tokenizer"], path)
    else:
        torch.save(files.tensors["tokenizer"], path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: part if isinstance(part, int) else int(part * len(data))])
    files.refused(capsys, 1, "--tokenizer", path.name, "truncated", tokenizer=str(path))


def test_files_that_are_no_checkpoint(files, capsys):
    text = files.root / "notes.txt"
    text.write_text("not a checkpoint, but quite long enough to be one")
    files.refused(capsys, 1, "--transformer", "notes.txt", "no checkpoint", transformer=str(text))
    files.refused(capsys, 1, "nowhere.pth does not exist", transformer="nowhere.pth")
    files.refused(capsys, 1, "is a directory", transformer=str(files.root))
    files.refused(capsys, 1, "holds no state dict", transformer=files.write("list.pth", [torch.ones(2)]))
    files.refused(capsys, 1, "entry 'epoch' is int", transformer=files.write("number.pth", {"epoch": 3}))


@pytest.mark.parametrize("overlap", [False, True], ids=["compressed", "overlapping"])
def test_an_archive_that_grows_when_read_is_not_opened(tmp_path, monkeypatch, overlap):
    path = tmp_path / "bomb.pt"
    torch.save({"weight": torch.zeros(1 << 12)}, path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED if overlap else zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        if overlap:  # the index lists the same bytes again and again
            archive.filelist += archive.filelist * 3
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("the archive was opened"))
    with pytest.raises(ArtifactError, match=r"bomb.pt was not opened: it declares [\d,]+ bytes .* file of [\d,]+, "):
        read_checkpoint(path)


def test_the_two_files_exchanged(files, capsys):
    name = load_card(files.family).name
    message = (f"looks like a {name} tokenizer", f"needed: a {name} transformer")
    files.refused(capsys, 1, "--transformer", *message, transformer=str(files.root / "tokenizer.pth"))


def test_every_key_is_accounted_for(files, capsys):
    state = dict(files.tensors["transformer"])
    lost = next(key for key in state if key.endswith("weight"))
    state["stray"] = state.pop(lost)
    words = ("does not fit", f"1 missing: {lost}", "1 unexpected: stray")
    files.refused(capsys, 1, "--transformer", *words, transformer=files.write("odd.pth", state))


def test_an_arch_of_another_size_names_key_and_shapes(var, capsys):
    for change, words in (
        ({"embed_dim": 64}, ("pos_start", "(1, 1, 32)", "(1, 1, 64)")),
        ({"depth": 3}, ("missing: blocks.2.", "transformer.pth")),
        ({"patch_nums": [1, 2, 3]}, ("pos_1LC", "(1, 30, 32)", "(1, 14, 32)")),
        ({"V": 32}, ("tokenizer.pth", "quantize.embedding.weight", "(64, 8)", "(32, 8)")),
    ):
        other = var.root / "other.json"
        other.write_text(json.dumps({**var.config, **change}))
        var.refused(capsys, 1, *words, arch=str(other))
    var.refused(capsys, 1, "as VAR d16", "first encoder.conv_in.weight", "(32, 3, 3, 3)", "(160, 3, 3, 3)", arch="d16")


def test_an_arch_of_another_size_of_llamagen(llamagen, capsys):
    def sizes(**change) -> str:
        (llamagen.root / "other.json").write_text(json.dumps({**llamagen.config, **change}))
        return str(llamagen.root / "other.json")

    first = "cls_embedding.embedding_table.weight"
    llamagen.refused(capsys, 1, f"first {first}", "(11, 32)", "(11, 64)", arch=sizes(dim=64, n_head=4))
    llamagen.refused(capsys, 1, "wqkv", "(96, 32)", "(64, 32)", arch=sizes(n_kv_head=1))
    words = ("first encoder.conv_in.weight", "(32, 3, 3, 3)", "(64, 3, 3, 3)")
    llamagen.refused(capsys, 1, *words, arch=sizes(ch=64))
    llamagen.refused(capsys, 2, "codebook_size 64", "vocab_size 32", arch=sizes(vocab_size=32))


def test_grids_that_do_not_fit(llamagen, capsys):
    def grid(value: str, *words: str, **given: str) -> None:
        llamagen.options = ("--grid", value) if value else ()
        llamagen.refused(capsys, 2, *words, **given)

    grid("5", "grid", "25 tokens", "block_size 16")
    grid("0", "grid")
    grid("", "grid")
    grid("16", "LlamaGen XL was published for a grid of 24, got 16", arch="XL")
    grid("32", "LlamaGen L was published for a grid of 16 or 24, got 32", arch="L")
    path = llamagen.write("c2i_L_384.pt", llamagen.tensors["transformer"])
    grid("16", "c2i_L_384.pt was published for a grid of 24, got 16", arch="L", transformer=path)


def test_a_file_of_the_other_family(var, llamagen, capsys):
    for files, other, names in ((var, llamagen, ("LlamaGen", "VAR")), (llamagen, var, ("VAR", "LlamaGen"))):
        for role in ("transformer", "tokenizer"):
            path = files.write(f"other_{role}.pth", other.tensors[role])
            words = (f"--{role}", f"looks like a {names[0]} {role}", f"needed: a {names[1]} {role}")
            files.refused(capsys, 1, *words, **{role: path})


def test_arch_files_that_cannot_be(files, capsys):
    def sizes(**change) -> str:
        (files.root / "bad.json").write_text(json.dumps({**files.config, **change}))
        return str(files.root / "bad.json")

    files.refused(capsys, 2, "arch", "no published", "of size 'd17'", arch="d17")
    files.refused(capsys, 2, "arch", "cannot read", arch="nowhere.json")
    files.refused(capsys, 2, "unknown key 'widht'", arch=sizes(widht=3))
    files.refused(capsys, 2, "--arch", "num_classes", arch=sizes(num_classes=0))
    constant = {"var": "using_znorm", "llamagen": "model_type"}[files.family]
    files.refused(capsys, 2, f"'{constant}' must be", arch=sizes(**{constant: "t2i"}))
    (files.root / "list.json").write_text("[1]")
    files.refused(capsys, 2, "one JSON object", arch=str(files.root / "list.json"))


def test_output_that_cannot_be_written(files, capsys):
    (files.root / "file").write_text("in the way")
    files.refused(capsys, 1, "cannot write", "file", output=str(files.root / "file"))


# --- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """The download function of huggingface_hub, replaced."""
    import huggingface_hub

    calls = []

    def replace(answer):
        def download(repository, name):
            calls.append((repository, name))
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return calls

    return replace


def test_a_hub_reference_is_fetched(var, hub):
    calls = hub(var.root / "transformer.pth")
    dd2.load_teacher(var.convert(transformer="hf://FoundationVision/var/sub/var_tiny.pth"))
    assert calls == [("FoundationVision/var", "sub/var_tiny.pth")]


def test_no_network(files, hub, capsys):
    hub(ConnectionError("Network is unreachable"))
    reference = "hf://FoundationVision/var/var_d16.pth"
    words = ("--transformer", reference, "could not be fetched (Network is unreachable)", "give its path")
    files.refused(capsys, 1, *words, transformer=reference)


@pytest.mark.parametrize(
    "path",
    [
        "var_d16.pth",
        "owner/var_d16.pth",
        "owner/repo/",
        "owner/repo/../../secret.pth",
        "owner/repo/sub/../x.pth",
        "owner/repo/./x.pth",
        "owner/repo//etc/passwd",
        "/owner/repo/x.pth",
        "../repo/x.pth",
        "owner/../x.pth",
        "owner/repo/sub\\..\\x.pth",
        "owner/repo/C:/x.pth",
        "owner/repo/x\n.pth",
    ],
)
def test_hub_references_that_are_none(var, hub, capsys, path):
    """Refused in one line, before anything is fetched or written."""
    calls = hub(var.root / "transformer.pth")
    var.refused(capsys, 2, "--transformer", "hf://OWNER/REPO/PATH", transformer=f"hf://{path}")
    assert calls == []


def test_a_checksum_is_checked_where_it_is_known(var, hub, capsys, monkeypatch):
    hub(var.root / "transformer.pth")
    card = load_card("var")
    monkeypatch.setitem(card.architectures["d16"], "sha256", "0" * 64)
    words = ("is not the published var_d16.pth", "SHA-256")
    var.refused(capsys, 1, *words, transformer=f"hf://{card.repository}/var_d16.pth")
    var.convert(transformer="hf://somebody/else/var_d16.pth")  # not the published repository


# --- published sizes -------------------------------------------------------------------------------------------------


def release_manifest(name: str) -> dict[str, torch.Tensor]:
    entries = json.loads((GOLDEN / f"manifest_{name}.json").read_text())
    dtypes = {key: getattr(torch, dtype.removeprefix("torch.")) for key, (_, dtype) in entries.items()}
    return {key: torch.empty(shape, dtype=dtypes[key], device="meta") for key, (shape, _) in entries.items()}


def meta_teacher(family: str, arch: str, tokenizer: str | None = None):
    """A teacher of a published size, not adapted."""
    card, release = load_card(family), FAMILIES[family].release
    grid = card.architectures[arch].get("files", [{}])[0].get("grid")
    return build_meta(family, release.architecture(card.release_config(arch, tokenizer), grid, False))


@pytest.mark.parametrize(
    ("family", "arch", "files"),
    [("var", "d16", ("var_d16", "vae_ch160v4096z32")), ("llamagen", "L", ("llamagen_L", "vq_ds16_c2i"))],
)
def test_manifests_of_the_real_sizes_fit(family, arch, files):
    teacher, release = meta_teacher(family, arch), FAMILIES[family].release
    tensors = dict(zip(("transformer", "tokenizer"), map(release_manifest, files), strict=True))
    assert difference(teacher.state_dict(), release.state(**tensors)) == ""
    load_release(release, teacher, tensors, {})


@pytest.mark.parametrize("family", PUBLISHED)
def test_parameter_counts_of_every_card(family):
    card = load_card(family)
    for arch, entry in card.architectures.items():
        teacher = meta_teacher(family, arch)
        networks = (teacher.backbone, teacher.classifier)
        assert sum(p.numel() for network in networks for p in network.parameters()) == entry["parameters"]
    for name, entry in card.tokenizers.items():
        tokenizer = meta_teacher(family, next(iter(card.architectures)), name).tokenizer
        assert sum(p.numel() for p in tokenizer.parameters()) == entry["parameters"]


def test_a_published_size_is_one_that_can_be_distilled():
    family, sizes = published("llamagen/L")
    assert family == "llamagen" and sizes["continuous_input"] and sizes["grid"] == 16
    with pytest.raises(ValueError, match="no weights of family 'table'"):
        published("table/small")


def test_reading_keeps_tensors_only(tmp_path):
    torch.save({"model": {"a": torch.ones(2)}, "args": argparse.Namespace(x=1)}, tmp_path / "x.pt")
    assert read_checkpoint(tmp_path / "x.pt")["a"].tolist() == [1, 1]
