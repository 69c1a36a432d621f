"""Models that see and hear."""
