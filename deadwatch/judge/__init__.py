"""Judge: Snapshot → reports. Pure arrays: no model, no hooks."""
