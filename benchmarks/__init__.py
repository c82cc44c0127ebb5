"""Measurements, side by side with peers in one run. Ratios count; absolute times belong to the machine."""
