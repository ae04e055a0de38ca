"""Everything a user starts: run config, launch, reports, the embedded world."""
