"""What dead units cost, and whether that does harm."""
