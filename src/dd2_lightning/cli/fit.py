"""``dd2 fit|validate|test|predict``: train a stage, or read the checkpoint of its run."""


def fit(arguments: list[str]) -> None:
    """Train a stage; its directory holds checkpoints, logs and, when it is finished, the artifact."""
    from dd2_lightning.cli.training import FitCLI, run_stage

    run_stage(FitCLI, arguments)


def validate(arguments: list[str]) -> None:
    """Measure a run's checkpoint on held-out teacher sequences; writes nothing."""
    from dd2_lightning.cli.training import ValidateCLI, run_stage

    run_stage(ValidateCLI, arguments)


def test(arguments: list[str]) -> None:
    """Measure a run's checkpoint on the test data of the data module; writes nothing."""
    from dd2_lightning.cli.training import TestCLI, run_stage

    run_stage(TestCLI, arguments)


def predict(arguments: list[str]) -> None:
    """Draw one-step images from a run's checkpoint."""
    from dd2_lightning.cli.training import PredictCLI, run_stage

    run_stage(PredictCLI, arguments)
