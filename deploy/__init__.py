"""Everything a user starts: a command a file, and in packages what the commands are made of."""
