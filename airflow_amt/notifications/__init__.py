"""Notifiers: they tell people about tuning jobs, through the notifiers of other providers."""
