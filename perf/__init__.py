"""Speed measurements: ``python -m perf.NAME`` prints a table; nothing here is a test."""
