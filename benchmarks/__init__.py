"""What was measured, and how: run a script as `python -m benchmarks.measure.NAME`."""
