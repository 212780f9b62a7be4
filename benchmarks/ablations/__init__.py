"""Ablations: the paper's choices, each changed alone, on the exact tables and on the digits.

``tables.yaml`` and ``digits.yaml`` are the baselines, ``variants.yaml`` says what is changed. ``make ablations`` runs
what is missing and writes the report.
"""
