"""What Airflow loads by itself wherever this provider is installed: the listener."""
