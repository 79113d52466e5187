"""Real models and data for the benchmarks: fetched as pinned packages, or trained on the built-in data."""
