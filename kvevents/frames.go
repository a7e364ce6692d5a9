package kvevents

import (
	"encoding/binary"
	"math"
)

// message is one live message.
type message struct {
	seq     uint64
	payload []byte
}

// endSequence ends a replay in place of a number.
const endSequence = math.MaxUint64

// liveFrames reads a live message: [topic, number, payload].
func liveFrames(frames [][]byte) (m message, ok bool) {
	if len(frames) != 3 {
		return m, false
	}
	m.seq, ok = sequence(frames[1])
	m.payload = frames[2]
	return m, ok
}

// replayFrames reads an answer of a replay: ["", number, payload] until vLLM
// 0.25, ["", topic, number, payload] from 0.26. The number of the last one is
// endSequence.
func replayFrames(frames [][]byte) (seq uint64, payload []byte, ok bool) {
	n := len(frames)
	if n < 3 || n > 4 {
		return 0, nil, false
	}
	seq, ok = sequence(frames[n-2])
	return seq, frames[n-1], ok
}

// sequence reads a number as it is on the wire: eight bytes, big-endian.
func sequence(frame []byte) (uint64, bool) {
	if len(frame) != 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(frame), true
}
