"""Metrics on features: Fréchet and kernel distance, inception score, precision and recall, diversity, path length."""
