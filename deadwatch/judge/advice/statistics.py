"""Data and statistics: what flows through the layers, forward and back."""
