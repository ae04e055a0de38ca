"""What a run is asked for: one YAML file and its sections, read and judged; starts nothing."""
