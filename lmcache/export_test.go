package lmcache

// Recovered is the settings worked out from the keys of a prompt that the
// instance holds, without the usual ones tried before.
func (d *Detector) Recovered(configured KeyGroup, instance string, tokens []uint32) KeyGroup {
	f, _ := d.recover(newCandidates(configured), instance, &sample{tokens: tokens, whole: true})
	return f.group
}

// Idle says that the Index has all that was taken in.
func (c *Controller) Idle() bool { return c.queue.depth() == 0 }

// HeartbeatURL is what the worker at ip is told.
func (c *Controller) HeartbeatURL(ip string) string { return c.registry.heartbeatURL(ip) }
