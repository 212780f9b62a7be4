"""LlamaGen (arXiv 2406.06525): next-token prediction in raster order."""
