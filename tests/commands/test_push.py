"""Publishing and loading by name: the real client of the Hub against a stand-in for its server."""

import pytest
import torch

import dd2_lightning as dd2
from dd2_lightning.cli import main
from hub_server import fresh_client, running_hub, variables


@pytest.fixture(scope="module")
def server():
    with running_hub() as hub:
        yield hub


@pytest.fixture
def as_user(server, tmp_path, monkeypatch):
    """A function: from now on the client is this user's, with an own cache of this name; nobody by default."""
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


def samples(generator):
    return generator.sample(torch.arange(2), generator=torch.Generator().manual_seed(1))


def test_what_is_published_samples_the_same_elsewhere(server, as_user, var_run, tmp_path, capsys):
    expected = samples(dd2.load_generator(var_run / "csd"))
    as_user("owner")
    main(["push", str(var_run / "csd"), "--repo", "user/digits"])
    assert f"{server.url}/user/digits" in capsys.readouterr().out
    as_user(cache="other")
    generator = dd2.load_generator("user/digits")
    assert torch.equal(samples(generator), expected) and generator.decode(expected).shape == (2, 1, 3, 3)
