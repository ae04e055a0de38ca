"""Drills: what a run survives, shown by doing it."""
