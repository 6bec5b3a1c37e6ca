"""Watching tuning jobs: what operators, sensors and triggers share while they wait."""
