"""The command line: ``airflow-amt``."""
