"""Tell how a run goes: terminal, log, heartbeat, Prometheus."""
