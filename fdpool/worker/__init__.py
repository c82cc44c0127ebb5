"""What runs inside a worker process: `python -m fdpool.worker`. Imports no trio until a task does."""
