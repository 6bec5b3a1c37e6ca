"""Sensors: wait for tuning jobs that something else started."""
