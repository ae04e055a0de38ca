"""What a user starts, a file each, and in packages what these commands are made of."""
