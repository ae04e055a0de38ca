"""Reward models and the servers that score records with them."""
