"""What is true of a file: speed, memory, size; and the statistics that judge it."""
