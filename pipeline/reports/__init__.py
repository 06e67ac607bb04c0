"""What a run shows: on a terminal, and in files."""
