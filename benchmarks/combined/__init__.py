"""Every method alone, and a combination, on real models: which cells there are, and their table."""
