"""Fleets that grow and shrink while a run is under way."""
