"""The command line: arguments → options → one call → exit code. No tensors here."""
