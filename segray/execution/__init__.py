"""One run: scheduling of units, workers, the event loop. Ray lives in ray_pool and ray_connection."""
