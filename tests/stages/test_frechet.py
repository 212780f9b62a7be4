"""Stage 4: the Fréchet distance of features as a loss."""

from runs import fit, stage_config


def test_smoke(var_run, tmp_path):
    config = stage_config(var_run, "frechet")
    config["trainer"]["default_root_dir"] = str(tmp_path)
    fit(config, tmp_path)
