"""One file per command, thin: read flags, call a job, show its result."""
