"""The policy: its parts, and how its weights reach those who run it."""
