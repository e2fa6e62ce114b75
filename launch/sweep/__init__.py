"""Many runs of one config with some values changed: the grid, its record, and training run by run."""
