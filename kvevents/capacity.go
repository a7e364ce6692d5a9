package kvevents

import "github.com/firsttoken/firsttoken/scoring"

// SetCapacity tells how many tokens the endpoint holds on its GPUs, as the engine
// itself counts them (num_gpu_blocks times block_size, summed over ranks); 0: not
// known. Where no capacity is configured it bounds what is believed of each rank
// and group from the next event on, oldest first. It cuts only what cannot be
// there: a group may fill all of the blocks, and a rank is given those of all.
// Safe for concurrent use.
func (s *Subscriber) SetCapacity(id scoring.EndpointID, gpu scoring.Tokens) { s.index.setRoom(id, gpu) }
