"""This repository's own experiments: scripts and YAML beside the JSON that they write. Run from the repository root."""
