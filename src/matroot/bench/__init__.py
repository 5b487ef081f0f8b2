"""Measurements: accuracy and time in the same row."""
