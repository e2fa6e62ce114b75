"""The paper's table and ablations anew: the kit (`reproduce/`), what it costs, its data, its training, its results."""
