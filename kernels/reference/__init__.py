"""The specification: each op in plain tensor arithmetic, on any device; slow and obvious."""
