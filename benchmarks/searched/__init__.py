"""The benchmark of searches: cells that are shared, the strategies, and the tables."""
