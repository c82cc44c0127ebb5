"""One worker's life: its start, its channel, its end."""
