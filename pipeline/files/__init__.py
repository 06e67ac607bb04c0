"""Image files ↔ tensors, inputs → jobs, and files written completely or not at all."""
