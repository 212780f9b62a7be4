"""Publishing and loading by name: the real client of the Hub against a stand-in for its server."""

import json
import socket
import sys
import time

import pytest
import torch
import yaml

import dd2_lightning as dd2
from dd2_lightning.artifacts import write_teacher
from dd2_lightning.cli import main
from dd2_lightning.errors import ArtifactError
from dd2_lightning.remote import HubModel
from hub_server import fresh_client, running_hub, variables
from processes import dd2 as command
from processes import environment
from runs import any_config, fails, fit
from teachers import gru_teacher


@pytest.fixture(scope="module")
def server():
    with running_hub() as hub:
        yield hub


@pytest.fixture
def be(server, tmp_path, monkeypatch):
    """A function: from now on the client has this token, or none, and this cache."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    def become(token=None, cache="cache", url=server.url, **more):
        monkeypatch.delenv("HF_TOKEN", raising=False)
        for name, value in variables(url, tmp_path / cache, token, **more).items():
            monkeypatch.setenv(name, value)
        fresh_client()

    become()
    monkeypatch.chdir(tmp_path)
    yield become
    monkeypatch.undo()
    fresh_client()


@pytest.fixture(scope="module")
def published(server, var_run, tmp_path_factory):
    """A run on the Hub, user/digits; it is published once."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables(server.url, tmp_path_factory.mktemp("home"), "owner").items():
            patch.setenv(name, value)
        fresh_client()
        dd2.load_generator(var_run / "csd").push_to_hub("user/digits")
    fresh_client()
    return "user/digits"


def samples(generator):
    return generator.sample(torch.arange(2), generator=torch.Generator().manual_seed(1))


def closed_port() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


# --- round trips -----------------------------------------------------------------------------------------------------


def test_what_is_published_samples_the_same_elsewhere(be, published, var_run, tmp_path):
    """Somewhere else, with an empty cache, without a token and without the teacher; then from the cache alone."""
    expected = dd2.load_generator(var_run / "csd")
    be(cache="other")
    found = dd2.load_generator(published)
    assert torch.equal(samples(found), samples(expected))
    assert torch.equal(found.decode(samples(found)), expected.decode(samples(expected)))
    for offline in ({"url": closed_port(), "HF_HUB_OFFLINE": "1"}, {"url": closed_port(), "HF_HUB_OFFLINE": "0"}):
        be(cache="other", **offline)
        assert torch.equal(samples(dd2.load_generator(published)), samples(expected))


def test_only_what_is_read_is_fetched(be, server, published):
    start = len(server.requests)
    dd2.load_generator(published)
    fetched = {line.split("/")[-1] for line in server.requests[start:] if line.startswith("GET")}
    assert fetched == {"config.json", "generator.safetensors", "tokenizer.safetensors"}


def test_the_command_takes_a_name_for_a_directory(be, server, published, var_run, tmp_path):
    """In a process of its own, whose environment alone says where the Hub is."""
    env = {**environment(), **variables(server.url, tmp_path / "home")}
    images = []
    for i, model in enumerate([published, str(var_run / "csd")]):
        output = tmp_path / f"{i}.png"
        ended = command("sample", "--model", model, "--output", str(output), "--num", "3", "--device", "cpu", env=env)
        assert ended.returncode == 0, ended.stderr
        images.append(output.read_bytes())
    assert images[0] == images[1]


def test_a_revision_is_pinned(be, server, published, var_run):
    repository = server.repositories[published]
    first = repository.refs["main"]
    repository.refs["v1"] = first
    config = json.loads(repository.commits[first]["config.json"])
    second = repository.commit({"config.json": json.dumps({**config, "head_time": 0.9}).encode()})
    try:
        times = [dd2.load_generator(published, revision=name).head_time for name in (None, "main", second, "v1", first)]
        assert times == [0.9, 0.9, 0.9, config["head_time"], config["head_time"]]
        assert dd2.load_generator(f"{published}@v1").head_time == config["head_time"]
        with pytest.raises(ArtifactError, match="user/digits on the Hub has no revision 'v2'"):
            dd2.load_generator(published, revision="v2")
    finally:
        repository.refs["main"] = first


def test_stages_take_a_teacher_and_a_start_from_the_hub(be, server, var_run, tmp_path):
    """A run then names its teacher by repository and commit, and finds it by that."""
    be("owner")
    dd2.push_to_hub(var_run / "teacher", "user/teacher")
    dd2.push_to_hub(var_run / "init", "user/init", private=True)
    config = any_config(var_run, "csd", tmp_path / "csd", teacher="user/teacher", init_from="user/init")
    fit(config, tmp_path, "--trainer.max_steps", "2")
    commit = server.repositories["user/teacher"].refs["main"]
    assert json.loads((tmp_path / "csd/config.json").read_text())["teacher"]["hub"] == f"hf://user/teacher@{commit}"
    samples(dd2.load_generator(tmp_path / "csd"))
    be(cache="other")
    with pytest.raises(ArtifactError, match="neither a directory here nor a model on the Hub that everybody can read"):
        dd2.load_init("user/init")


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_of_the_hub(tmp_path, monkeypatch):
    """What is here is local, and so is what lies beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "user").mkdir()
    (tmp_path / "user/name").mkdir()
    for name in (
        "user/name",
        "runs/csd",
        "runs",
        "a/b/c",
        "/a/b",
        "../a",
        "./a",
        "a/..",
        "csd",
        "",
        "a b/c",
        "runs/a@b",
    ):
        assert HubModel.named(name) is None, name
    for name in ("hf://user/name", "other/name", "other/name@v1.0", "hf://runs/csd@refs/pr/1"):
        found = HubModel.named(name)
        assert found and str(found) == "hf://" + name.removeprefix("hf://")


def test_a_directory_of_that_name_wins(be, server, published, var_run, tmp_path):
    dd2.export(var_run / "csd", tmp_path / "user" / "digits")
    start = len(server.requests)
    assert dd2.load_generator("user/digits").directory.resolve() == tmp_path / "user" / "digits"
    assert len(server.requests) == start


# --- the model card --------------------------------------------------------------------------------------------------


def test_a_report_of_this_very_model_is_on_the_card(be, published, var_run, tmp_path, capsys):
    dd2.export(var_run / "csd", tmp_path / "run")
    weights = json.loads((tmp_path / "run/config.json").read_text())["files"]["generator.safetensors"]
    (tmp_path / "report").mkdir()
    (tmp_path / "report/table.md").write_text("| sampler | FID |\n| --- | ---: |\n| one-step | 4.2 |\n")
    (tmp_path / "report/samples.png").write_bytes(b"\x89PNG")
    (tmp_path / "report/results.json").write_text(json.dumps({"weights": {"one-step": weights}}))
    main(["push", "run", "--repo", "user/digits", "--dry-run"])
    text = capsys.readouterr().out
    for words in ("| one-step | 4.2 |", "(samples.png)", 'dd2.load_generator("user/digits")', "was not published"):
        assert words in text
    assert yaml.safe_load(text.split("---")[1])["tags"][-1] == "csd"
    (tmp_path / "report/results.json").write_text(json.dumps({"weights": {"one-step": "of another"}}))
    main(["push", "run", "--repo", "user/digits", "--dry-run"])
    assert "4.2" not in capsys.readouterr().out
    with fails(capsys, 1, "--report report did not measure this model"):
        main(["push", "run", "--repo", "user/digits", "--dry-run", "--report", "report"])


def test_a_dry_run_contacts_nobody(be, server, var_run):
    start = len(server.requests)
    main(["push", str(var_run / "csd"), "--repo", "user/new", "--dry-run"])
    assert len(server.requests) == start and "user/new" not in server.repositories


def test_a_private_repository(be, server, var_run):
    be("owner")
    main(["push", str(var_run / "teacher"), "--repo", "user/secret", "--private"])
    assert server.repositories["user/secret"].private


# --- what can go wrong -----------------------------------------------------------------------------------------------


def test_publishing_is_refused_in_one_line(be, server, var_run, tmp_path, capsys):
    line = ["push", str(var_run / "csd"), "--repo"]
    with fails(capsys, 1, "needs a token", "hf auth login", "HF_TOKEN"):
        main([*line, "user/x"])
    for name in ("digits", "user/x@v1", "a/b/c", "user/x y"):
        with fails(capsys, 2, f"--repo must be user/name, got '{name}'"):
            main([*line, name])
    be("nobody")
    with fails(capsys, 1, "user/x was not published: the Hub does not know this token"):
        main([*line, "user/x"])
    be("reader")
    with fails(capsys, 1, "user/x was not published: this token may not write there"):
        main([*line, "user/x"])
    be("owner", url=closed_port())
    with fails(capsys, 1, "user/x was not published: the Hub cannot be reached"):
        main([*line, "user/x"])
    be("owner", HF_HUB_OFFLINE="1")
    with fails(capsys, 1, "user/x was not published: the Hub cannot be reached", "offline"):
        main([*line, "user/x"])
    with fails(capsys, 1, "nowhere does not exist"):
        main(["push", "./nowhere", "--repo", "user/x"])
    assert "user/x" not in server.repositories


def test_loading_is_refused_in_one_line(be, server, published, var_run, tmp_path, capsys, monkeypatch):
    line = ["sample", "--output", "x.png", "--device", "cpu", "--model"]
    with fails(capsys, 1, "generator: user/nothing is neither a directory here nor a model on the Hub"):
        main([*line, "user/nothing"])
    with fails(capsys, 1, "user/digits on the Hub has no revision 'v9'"):
        main([*line, f"{published}@v9"])
    server.repositories["user/other"] = type(server.repositories[published])()
    server.repositories["user/other"].commit({"README.md": b"another model"})
    with fails(capsys, 1, "hf://user/other is no model of dd2-lightning: it has no config.json"):
        main([*line, "user/other"])
    server.repositories["user/other"].commit({"config.json": b'{"model_type": "bert"}'})
    with fails(capsys, 1, "hf://user/other/config.json has no key 'stage'; it is no model of dd2-lightning"):
        main([*line, "user/other"])
    server.repositories["user/other"].commit({"config.json": b'{"format": 1, "stage": "csd", "family": "var"}'})
    with fails(capsys, 1, "hf://user/other/config.json has no key 'teacher'"):
        main([*line, "user/other"])
    wrong = {"format": 1, "stage": "csd", "family": "var", "head": {"width": "x"}, "head_time": 1, "files": {}}
    sizes = json.loads((var_run / "teacher/config.json").read_text())["architecture"]
    for architecture in ({}, sizes):
        config = {**wrong, "teacher": {"architecture": architecture}}
        server.repositories["user/other"].commit({"config.json": json.dumps(config).encode()})
        with fails(capsys, 1, "/config.json: "):
            main([*line, "user/other"])
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client tries again and again
    be(url=closed_port(), cache="empty")
    with fails(capsys, 1, "not in the Hub's cache, and the Hub cannot be reached"):
        main([*line, published])
    be(cache="empty", HF_HUB_OFFLINE="1")
    with fails(capsys, 1, "not in the Hub's cache, and the Hub cannot be reached", "offline"):
        main([*line, published])
    assert not (tmp_path / "x.png").exists()


def test_a_damaged_download_is_refused(be, server, published, capsys):
    """By the checksum in its config.json, before it is read."""
    repository = server.repositories[published]
    first = repository.refs["main"]
    content = bytearray(repository.commits[first]["generator.safetensors"])
    content[-1] ^= 1
    repository.commit({"generator.safetensors": bytes(content)})
    try:
        with fails(capsys, 1, "generator.safetensors is damaged: its SHA-256 is not that in config.json"):
            main(["sample", "--output", "x.png", "--device", "cpu", "--model", published])
    finally:
        repository.refs["main"] = first


def test_a_download_does_not_choose_what_is_imported(be, tmp_path, monkeypatch, capsys):
    write_teacher(tmp_path / "gru", gru_teacher())
    be("owner")
    dd2.push_to_hub(tmp_path / "gru", "user/gru")
    dd2.load_teacher("user/gru")  # its module is imported
    monkeypatch.delitem(sys.modules, "gru_teacher")
    with pytest.raises(ArtifactError, match="a class of its author's"):
        dd2.load_teacher("user/gru")
