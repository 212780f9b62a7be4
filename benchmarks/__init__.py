"""Experiments of this repository: scripts and YAML beside the JSON that they write; run from its root."""
