"""Triggers: what waits for a tuning job while its task is deferred."""
