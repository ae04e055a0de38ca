"""Everything that crosses Redis: records, their bytes, the replay, its rules and its server."""
