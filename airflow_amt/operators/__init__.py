"""Operators: start a tuning job and wait for it, stop one, or go on after one that ended."""
