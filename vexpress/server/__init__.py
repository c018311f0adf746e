"""A page and a service: videos by HTTP, live streams by WebSocket."""
