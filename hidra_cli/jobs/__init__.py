"""The work behind each command, callable from Python: neither typer nor rich."""
