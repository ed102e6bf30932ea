"""Show: records → curves, pictures, text."""
