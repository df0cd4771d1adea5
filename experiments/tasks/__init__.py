"""What `task=` chooses: a verb a file."""
