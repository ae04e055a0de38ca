"""Worked examples: a reward of one's own, prompts of one's own, and the config that joins them."""
