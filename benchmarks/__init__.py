"""Every speed, memory and quality claim, as a command: ``python -m benchmarks.NAME [--quick]``."""
