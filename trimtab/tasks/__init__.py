"""What a model is for: data in three splits, checked."""
