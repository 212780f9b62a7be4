"""Images in files: grids, one file an image, and npz sample sets that continue after an interruption."""
