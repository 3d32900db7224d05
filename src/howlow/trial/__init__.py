"""One trial, from its settings to its record: `run` is its method section."""
