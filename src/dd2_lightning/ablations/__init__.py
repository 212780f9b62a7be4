"""Ablations: the paper's choices, each changed alone, on the exact tables and on the digits (``dd2 ablations``)."""
