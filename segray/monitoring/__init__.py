"""Listeners that report on a run: terminal, log, heartbeat, Prometheus."""
