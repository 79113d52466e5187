"""Training as a job of its own: trained until something is reached, and the proof that it can be resumed."""
