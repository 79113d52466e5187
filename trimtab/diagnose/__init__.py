"""What this machine has, and what can be done to a task's model on it, before anything is spent on trying."""
