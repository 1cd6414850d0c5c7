"""A worker's supervisor: holds the leases, drives the trainer process. No torch."""
