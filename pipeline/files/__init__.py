"""One file ↔ one tensor, folders → jobs, and files that are whole or not there."""
