"""Hooks: the only code that calls boto3."""
