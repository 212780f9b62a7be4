"""``dd2 export``: a directory that needs no other."""


def export_run(
    run: str,
    /,
    output: str,
    guidance: bool = False,
    raw: bool = False,
    report: str | None = None,
    license: str | None = None,
) -> None:
    """Write a run as a directory that samples and decodes without its teacher, to be copied or published.

    It holds the network, the tokenizer, config.json with checksums of all files, and a model card. Commands and
    dd2.load_generator take it like any other directory.

    Args:
        run: directory of a finished stage, or user/name of a model on the Hub.
        output: directory to write.
        guidance: add the guidance network, from which stage 3 can continue.
        raw: add the generator's weights without averaging.
        report: directory of an evaluation for the model card; by default RUN/report or the one beside RUN, if it
            measured this model.
        license: of the model, like mit or cc-by-nc-4.0; by default that of the published weights behind it.

    Examples:
        dd2 export runs/var/align --output digits
        dd2 sample --model digits --num 30 --output grid.png
    """
    from dd2_lightning.cli.finish import finish
    from dd2_lightning.hub.export import export, size

    contents = export(run, output, guidance=guidance, raw=raw, report=report, license=license)
    finish("export", f"{len(contents)} files, {size(contents)} -> {output}", output=output)
