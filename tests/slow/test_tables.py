"""The exact oracle: stages 1 and 2 on joints that are written out, judged by total variation."""

import json

import pytest
import torch

from benchmarks.tables import STUDENT, distil_table, independent_total_variation, main, random_table, two_sequences

SMALL = {"width": 48, "depth": 1, "heads": 4}


def test_the_random_table_is_what_it_says():
    table = random_table(0, SMALL)
    assert table.joint.shape == (1, 8, 8, 8)
    assert (table.joint > 0).sum() == 4 * 3 * 3
    assert table.joint.sum().item() == pytest.approx(1)
    assert table.codebook.norm(dim=1).tolist() == pytest.approx([1.4] * 8)
    assert torch.equal(random_table(0, SMALL).joint, table.joint)
    assert not torch.equal(random_table(1, SMALL).joint, table.joint)


def test_independent_tokens_miss_half_of_two_sequences():
    assert independent_total_variation(two_sequences(SMALL)) == pytest.approx(0.5)
    assert 0.6 < independent_total_variation(random_table(0, SMALL)) < 1


def test_two_sequences_are_distilled():
    curve = distil_table(
        two_sequences(SMALL),
        seed=0,
        iterations=400,
        init_iterations=150,
        every=400,
        samples=20_000,
        head_width=48,
        head_depth=2,
    )
    final = curve[-1]
    assert final["total_variation"] < 0.03  # seeds 0, 1, 2: .007, .015, .008
    assert final["impossible"] < 0.02


def test_the_command_writes_curve_and_median(tmp_path, capsys):
    output = tmp_path / "tables.json"
    counts = ["--iterations", "4", "--every", "2", "--init_iterations", "2", "--samples", "2000"]
    main(["--output", str(output), "--seeds", "[3,4]", *counts])
    written = json.loads(output.read_text())
    assert [run["seed"] for run in written["runs"]] == [3, 4]
    assert [point["iteration"] for point in written["runs"][0]["curve"]] == [2, 4]
    assert "total variation" in capsys.readouterr().out


def test_dd1_is_measured_on_the_same_table(tmp_path):
    output = tmp_path / "tables.json"
    counts = ["--iterations", "2", "--every", "2", "--init_iterations", "2", "--tokens", "2", "--dd1_iterations", "4"]
    counts += ["--samples", "2000"]
    main(["--output", str(output), "--seeds", "[0]", *counts])
    written = json.loads(output.read_text())
    (run,) = written["runs"]
    assert [point["iteration"] for point in run["dd1_curve"]] == [2, 4] and written["tokens"] == 2
    assert written["dd1_median"] == run["dd1_final"] == run["dd1_curve"][-1]["total_variation"]
    assert run["independent"] == independent_total_variation(random_table(0, STUDENT, 2))


def test_seconds_of_stage_1_are_in_the_curve():
    """The longer stage 1, the later stage 2 begins."""
    first = [distil_table(two_sequences(SMALL), 0, 1, init, every=1, samples=100)[0]["seconds"] for init in (1, 40)]
    assert first[1] > 2 * first[0]


def test_a_table_needs_two_tokens_and_room(tmp_path, capsys):
    for tokens in (1, 8):
        with pytest.raises(SystemExit) as stop:
            main(["--output", str(tmp_path / "out.json"), "--tokens", str(tokens)])
        assert stop.value.code == 2 and "--tokens must be 2 to 7" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
