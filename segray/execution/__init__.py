"""One run: the scheduling of units, the workers and the event loop. Ray lives in ray_pool and ray_connection."""
