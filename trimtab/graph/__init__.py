"""The one graph: capture it, read its dimensions, cut it, save it."""
