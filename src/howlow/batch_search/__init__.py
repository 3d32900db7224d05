"""The largest batch that fits: `search` (a pure function), `probe` (runs a `workload`), `driver`."""
