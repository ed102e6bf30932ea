"""Causes of death: how the units that are dead now have died."""
