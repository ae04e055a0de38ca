"""What a user starts, mostly a file each, and in packages what these commands are made of."""
