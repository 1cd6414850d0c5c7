"""Celery workers: a supervisor without torch and the trainer process that holds it."""
