"""What the benchmark of pruned quality is made of: nets, cells that are kept, the peer's process, tables and plot."""
