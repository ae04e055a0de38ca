"""What a config needs before a run of it may begin, told from shapes alone."""
