"""What `compare.py` and `crosscheck.py` are made of: servers, load, workloads, and the figures of their runs."""
