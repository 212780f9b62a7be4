"""The families of teachers, one folder each, and the registry that lists them."""
