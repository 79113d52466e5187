"""The methods that make a model smaller or faster, and what applies them in order."""
