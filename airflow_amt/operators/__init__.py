"""Operators: start a tuning job and wait for it, or stop one."""
