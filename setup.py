"""The README as PyPI shows it, with absolute links; everything else is in setup.cfg."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

config = ConfigParser()
config.read("setup.cfg")
REPOSITORY = config["metadata"]["url"]


def absolute(readme: str) -> str:
    """Make the links of a Markdown text to files of the repository absolute, images to the files themselves."""

    def link(found: re.Match[str]) -> str:
        kind = "raw" if found[1].startswith(("!", "src")) else "blob"
        return f"{found[1]}{REPOSITORY}/{kind}/main/{found[2]}"

    return re.sub(r'(!\[[^\]]*\]\(|\]\(|(?:src|href)=")(?!https?:|#|mailto:)([^)"\s]+)', link, readme)


if __name__ == "__main__":
    readme = Path("README.md").read_text(encoding="utf-8")
    setup(long_description=absolute(readme), long_description_content_type="text/markdown")
