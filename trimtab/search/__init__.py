"""Which candidates are tried, in what order, and what of them is kept."""
