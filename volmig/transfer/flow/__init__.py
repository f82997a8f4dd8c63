"""Moving bytes with several requests under way: buffers, queues of requests, and the pump that keeps them busy."""
