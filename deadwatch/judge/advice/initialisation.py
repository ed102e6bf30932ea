"""Initialisation: what parameters are before the first step."""
