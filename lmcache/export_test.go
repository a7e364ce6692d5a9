package lmcache

// Idle says that the Index has all that was taken in.
func (c *Controller) Idle() bool { return c.queue.depth() == 0 }

// HeartbeatURL is what the worker at ip is told.
func (c *Controller) HeartbeatURL(ip string) string { return c.registry.heartbeatURL(ip) }
