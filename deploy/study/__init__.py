"""A study: arms and seeds in one grid, its tables and its page."""
