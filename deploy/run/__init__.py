"""One run from its plan to its outcome: its driver, and how it starts, watches and ends others."""
