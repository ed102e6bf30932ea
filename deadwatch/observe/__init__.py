"""Observe: model → Snapshot. Reads the model, never writes it."""
