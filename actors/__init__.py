"""Samplers: the processes that turn tickets into groups of latents."""
