"""``dd2 push``: publish a run."""


def push(
    run: str,
    /,
    repo: str,
    private: bool = False,
    dry_run: bool = False,
    guidance: bool = False,
    raw: bool = False,
    report: str | None = None,
    license: str | None = None,
) -> None:
    """Publish a run on the Hugging Face Hub, as the directory that dd2 export writes.

    The model card says what is in config.json and in the report of dd2 evaluate: settings, commit, hardware, metrics,
    images, where the teacher comes from, and how to load the model. Needs a token: hf auth login, or HF_TOKEN.

    Args:
        run: directory of a finished stage, or one that was exported.
        repo: user/name; created if it is not there. dd2 sample --model user/name then works everywhere.
        private: make a new repository private.
        dry_run: print the files and the model card, and contact nobody.
        guidance: add the guidance network, from which stage 3 can continue.
        raw: add the generator's weights without averaging.
        report: directory of an evaluation for the model card; by default RUN/report or the one beside RUN, if it
            measured this model.
        license: of the model, like mit or cc-by-nc-4.0; by default that of the published weights behind it.

    Examples:
        dd2 push runs/var/align --repo user/digits --dry-run
        dd2 push runs/var/align --repo user/digits --private
    """
    from huggingface_hub import constants

    from dd2_lightning.cli.finish import finish
    from dd2_lightning.hub.export import size
    from dd2_lightning.hub.push import push_to_hub

    options = {"guidance": guidance, "raw": raw, "report": report, "license": license}
    contents = push_to_hub(run, repo, private, dry_run, **options)
    if dry_run:
        card = contents["README.md"]
        assert isinstance(card, bytes)
        print(card.decode())
        for name, content in contents.items():
            print(f"{size({name: content}):>10}  {name}")
        finish("push --dry-run", f"{repo} was not published: --dry-run")
    else:
        finish("push", f"{len(contents)} files, {size(contents)} -> {constants.ENDPOINT}/{repo}", output=repo)
