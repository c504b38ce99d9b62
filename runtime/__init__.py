"""What runs and measures models: evaluation, verification, calibration, memory and time."""
