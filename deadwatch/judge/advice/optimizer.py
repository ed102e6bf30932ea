"""The optimizer: what its steps do to units."""
