"""Published networks of DD1: the right files become generators with the right samples, all others are refused."""

import json
from pathlib import Path

import pytest
import torch

import dd2_lightning as dd2
from dd2_lightning.artifacts import write_teacher
from dd2_lightning.cli import main
from dd2_lightning.families.registry import FAMILIES, build_meta
from dd2_lightning.hub.cards import load_card
from reference import close, golden_dd1, under
from runs import fails, make_teacher

PUBLISHED = [family.name for family in FAMILIES.values() if family.published]


class Files:
    """A teacher's directory, a checkpoint in the published layout, and the command that converts it."""

    def __init__(self, root: Path, family: str):
        self.root, self.family = root, family
        self.teacher, self.tensors, self.sizes = golden_dd1(family)
        write_teacher(root / "teacher", self.teacher)
        self.state = under(self.tensors, "weights")
        self.raw = {key: value + 1 if value.is_floating_point() else value for key, value in self.state.items()}
        self.path = self.write("dd1.pt", self.layout(self.state, self.raw))

    def layout(self, ema: dict | None, raw: dict | None) -> dict:
        """What a published file holds."""
        if self.family == "var":
            return {"epoch": 1, "trainer": {"ema_parameters": ema, "var_wo_ddp": raw}}
        return {"ema": ema, "model": raw, "steps": 3}

    def write(self, name: str, content) -> str:
        torch.save(content, self.root / name)
        return str(self.root / name)

    def convert(self, *options: str, **given: str) -> Path:
        numbers = {"split": str(self.sizes["split_t"]), "second": str(self.sizes["t_second"])}
        paths = {"checkpoint": self.path, "teacher": str(self.root / "teacher"), "output": str(self.root / "dd1")}
        values = {key: value for key, value in {**paths, **numbers, **given}.items() if value}
        main(["convert", "dd1", *(word for key, value in values.items() for word in (f"--{key}", value)), *options])
        return self.root / "dd1"

    def refused(self, capsys, status: int, *words: str, **given: str) -> None:
        with fails(capsys, status, *words):
            self.convert(**given)
        assert not (self.root / "dd1" / "config.json").exists()


@pytest.fixture(params=PUBLISHED)
def files(request, tmp_path):
    return Files(tmp_path, request.param)


# --- what converts ---------------------------------------------------------------------------------------------------


def test_a_converted_network_draws_the_samples_of_the_release(files):
    generator = dd2.load_generator(files.convert())
    for steps in (1, 2):
        tokens = generator.sample(files.tensors["in/labels"], files.tensors["in/noise"], steps=steps)
        close(tokens, files.tensors[f"step{steps}/sequence"], 1e-5)
    config = json.loads((files.root / "dd1/config.json").read_text())
    assert config["stage"] == "dd1" and config["family"] == files.family
    assert config["source"]["weights"] == "ema" and len(config["source"]["sha256"]) == 64


def test_ema_and_raw_weights(files):
    ema = dd2.load_generator(files.convert()).student.state_dict()
    raw = dd2.load_generator(files.convert("--weights", "raw")).student.state_dict()
    for key, value in ema.items():
        close(raw[key], value if key.endswith("zero_k_bias") else value + 1, 0)


def test_constants_may_be_absent(files):
    """And those that are there are not read: they would be wrong in another precision."""
    kept = {key: value for key, value in files.state.items() if "zero_k_bias" not in key and "lvl_1L" not in key}
    kept |= {"freqs_cis": torch.ones(3)} if files.family == "llamagen" else {"attn_bias_for_masking": torch.ones(2)}
    path = files.write("kept.pt", files.layout({key: value.double() for key, value in kept.items()}, files.raw))
    generator = dd2.load_generator(files.convert(checkpoint=path))
    assert {value.dtype for value in generator.student.parameters()} == {torch.float32}
    tokens = generator.sample(files.tensors["in/labels"], files.tensors["in/noise"])
    close(tokens, files.tensors["step1/sequence"], 1e-5)


def test_a_published_file_knows_its_split(files, monkeypatch):
    facts = {"split": files.sizes["split_t"], "second": files.sizes["t_second"]}
    monkeypatch.setitem(load_card(files.family).dd1.published, "some/dd1.pt", facts)
    generator = dd2.load_generator(files.convert(split="", second=""))
    assert (generator.split, generator.second) == (facts["split"], facts["second"])
    generator = dd2.load_generator(files.convert(split="1", second=""))
    assert (generator.split, generator.second) == (1, facts["second"])


def test_a_hub_reference_is_fetched_and_checked(files, monkeypatch, capsys):
    import huggingface_hub

    calls, card = [], load_card(files.family).dd1
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *where: calls.append(where) or files.path)
    name = next(iter(card.published))
    reference = f"hf://{card.repository}/{name}"
    with monkeypatch.context() as patch:
        patch.setitem(card.published, name, {"sha256": "0" * 64})
        files.refused(capsys, 1, "--checkpoint", "is not the published", "SHA-256", checkpoint=reference)
    with monkeypatch.context() as patch:
        patch.setitem(card.published, name, {"split": 1, "second": 1})
        dd2.load_generator(files.convert(checkpoint=reference))
    assert calls == [(card.repository, name)] * 2


def test_a_path_out_of_the_repository(files, monkeypatch, capsys):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *where: pytest.fail("fetched"))
    files.refused(capsys, 2, "--checkpoint", "hf://OWNER/REPO/PATH", checkpoint="hf://owner/repo/../x.pt")


# --- what does not ---------------------------------------------------------------------------------------------------


def test_every_key_is_accounted_for(files, capsys):
    state = dict(files.state)
    lost = "final_layer_conti.linear.weight"
    state["stray"] = state.pop(lost)
    state["n_d_embed.weight"] = torch.ones(3, 5)
    path = files.write("odd.pt", files.layout(state, files.raw))
    width = files.sizes.get("width") or files.sizes["dim"]
    words = ("odd.pt does not fit", "first n_d_embed.weight: it is (3, 5)", f"has (2, {width})")
    files.refused(capsys, 1, *words, f"1 missing: {lost}", "1 unexpected: stray", checkpoint=path)


def test_weights_that_are_not_there(files, capsys):
    content = files.layout(files.state, None)
    path = files.write("half.pt", content)
    entry = load_card(files.family).dd1.weights["raw"]
    files.refused(capsys, 1, "half.pt has no entry", entry, checkpoint=path, weights="raw")
    files.refused(capsys, 2, "weights", weights="best")
    bare = files.write("bare.pt", files.state)
    files.refused(capsys, 1, "bare.pt has no entry", "published DD1", checkpoint=bare)


def test_a_truncated_file(files, capsys):
    path = files.root / "cut.pt"
    path.write_bytes(Path(files.path).read_bytes()[:-2000])
    files.refused(capsys, 1, "--checkpoint", "cut.pt is truncated", checkpoint=str(path))
    files.refused(capsys, 1, "--checkpoint", "nowhere.pt does not exist", checkpoint="nowhere.pt")


def test_a_file_of_the_other_family(tmp_path, capsys):
    (tmp_path / "v").mkdir(), (tmp_path / "l").mkdir()
    var, llamagen = Files(tmp_path / "v", "var"), Files(tmp_path / "l", "llamagen")
    for files, other in ((var, llamagen), (llamagen, var)):
        files.refused(capsys, 1, "has no entry", load_card(files.family).dd1.weights["ema"], checkpoint=other.path)
        path = files.write("other.pt", files.layout(other.state, other.raw))
        names = [load_card(one.family).name for one in (other, files)]
        files.refused(capsys, 1, f"looks like a {names[0]}", f"holds a {names[1]} teacher", checkpoint=path)


def test_a_teacher_is_no_network_of_dd1(files, capsys):
    plain = under(files.tensors, "teacher")
    path = files.write("plain.pt", files.layout(plain, plain))
    files.refused(capsys, 1, "does not fit", "missing", checkpoint=path)


def test_splits_that_cannot_be(files, capsys):
    N = files.teacher.layout.num_positions
    files.refused(capsys, 2, "--split and --second", "dd1.pt", *load_card(files.family).dd1.files(), split="")
    files.refused(capsys, 2, f"split must be in 0..{N}", split=str(N + 1))
    files.refused(capsys, 2, f"second must be in 1..{N - 1}", second=str(N))


def test_teachers_that_do_not_fit(tmp_path, capsys, monkeypatch):
    files = Files(tmp_path, "llamagen")
    files.refused(capsys, 1, "--teacher", "nowhere does not exist", teacher=str(tmp_path / "nowhere"))
    words = ("no weights of family 'table' are known",)
    files.refused(capsys, 2, *words, teacher=str(make_teacher(tmp_path / "table")))
    path = files.write("llamagen-L.pt", files.layout(files.state, files.raw))
    words = ("--teacher", "has grid 4", "LlamaGen was published for 16")
    files.refused(capsys, 1, *words, checkpoint=path)
    config = json.loads((tmp_path / "teacher/config.json").read_text())
    config["architecture"]["code_norm"] = 2.0
    (tmp_path / "teacher/config.json").write_text(json.dumps(config))
    files.refused(capsys, 1, "--teacher", "has code_norm 2.0", "published for 1.0")


def test_a_teacher_that_changed_is_refused(files):
    directory = files.convert()
    with torch.no_grad():
        files.teacher.classifier.get_parameter("head.weight" if files.family == "var" else "output.weight").add_(1)
    write_teacher(files.root / "teacher", files.teacher)
    with pytest.raises(dd2.errors.ArtifactError, match="is not the teacher"):
        dd2.load_generator(directory)


# --- published sizes -------------------------------------------------------------------------------------------------

QUOTED = {"d16": 328.2, "d20": 635.4, "d24": 1092.5, "B": 98.3, "L": 326.2}
"""Millions of parameters of the released networks."""


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_sizes(family):
    """Parameters counted on shapes; split and second exist in the layout."""
    card = load_card(family)
    for facts in card.dd1.published.values():
        sizes = FAMILIES[family].release.architecture(
            card.release_config(facts["arch"]), facts.get("teacher", {}).get("grid"), False
        )
        with torch.device("meta"):
            teacher = build_meta(family, sizes)
            student = teacher.dd1_student()
        parameters = sum(parameter.numel() for parameter in student.parameters())
        assert parameters == facts["parameters"]
        assert round(parameters / 1e6, 1) == QUOTED[facts["arch"]]
        assert 0 < facts["second"] < teacher.layout.num_positions
        assert 0 < facts["split"] < teacher.layout.num_positions
        assert all(sizes.get(key, value) == value for key, value in card.dd1.teacher.items())
