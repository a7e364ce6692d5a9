package kvevents

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tinylib/msgp/msgp"

	"github.com/firsttoken/firsttoken/scoring"
)

// publisher is one engine's publishing: numbered messages, and a buffer of the
// last ones for replay. Step n stores a prompt that only that life and step
// have.
type publisher struct {
	life   int
	next   uint64
	keeps  int
	buffer []message
}

func stepPrompt(life int, seq uint64) []uint32 { return prompt(life*1000+int(seq)+1, 0, 4) }

// step publishes one message.
func (p *publisher) step() message {
	m := message{p.next, payloadOf(float64(p.life*1_000_000)+float64(p.next), say{}.stored(stepPrompt(p.life, p.next), 0))}
	p.next++
	p.buffer = append(p.buffer, m)
	if len(p.buffer) > p.keeps {
		p.buffer = p.buffer[1:]
	}
	return m
}

// restart is the engine's next life.
func (p *publisher) restart() { *p = publisher{life: p.life + 1, keeps: p.keeps} }

// payloadOf encodes stored events in the array form.
func payloadOf(at float64, events ...event) []byte {
	b := msgp.AppendFloat64(msgp.AppendArrayHeader(nil, 3), at)
	b = msgp.AppendArrayHeader(b, uint32(len(events)))
	for _, e := range events {
		b = msgp.AppendString(msgp.AppendArrayHeader(b, 7), "BlockStored")
		b = msgp.AppendArrayHeader(b, uint32(len(e.hashes)))
		for _, h := range e.hashes {
			b = msgp.AppendUint64(b, h)
		}
		if e.hasParent {
			b = msgp.AppendUint64(b, e.parent)
		} else {
			b = msgp.AppendNil(b)
		}
		b = msgp.AppendArrayHeader(b, uint32(len(e.tokens)))
		for _, id := range e.tokens {
			b = msgp.AppendUint32(b, id)
		}
		b = msgp.AppendNil(msgp.AppendInt(b, e.blockSize))
		b = msgp.AppendString(b, "GPU")
	}
	return msgp.AppendNil(b)
}

// follower is a stream and its publisher, without sockets.
type follower struct {
	*engine
	stream stream
	pub    *publisher
}

func newFollower(t *testing.T, replayable bool, pub *publisher) *follower {
	t.Helper()
	e := newEngine(t, scoring.TierCapacity{})
	f := &follower{engine: e, stream: stream{view: e.v, batch: &batch{}, replayable: replayable}, pub: pub}
	f.stream.begin()
	return f
}

// replay answers the question under way, and those that follow from it. lost
// says which answers the socket drops the first time: never the first answer,
// since a ROUTER drops when its queue is full.
func (f *follower) replay(lost ...uint64) {
	f.t.Helper()
	for rounds := 0; f.stream.asked != nil; rounds++ {
		if rounds > 20 {
			f.t.Fatal("asks for ever")
		}
		from := f.stream.asked.from
		for _, m := range slices.Clone(f.pub.buffer) {
			if m.seq >= from && (rounds > 0 || m.seq == from || !slices.Contains(lost, m.seq)) {
				f.stream.answer(now, m.seq, m.payload)
			}
		}
		f.stream.replayed(now)
	}
}

// live delivers messages.
func (f *follower) live(messages ...message) {
	for _, m := range messages {
		f.stream.message(now, m)
	}
}

// knows compares which steps of the present life are held, and that nothing
// else is.
func (f *follower) knows(want ...uint64) {
	f.t.Helper()
	var got []uint64
	for seq := range f.pub.next + 10 {
		if f.match(stepPrompt(f.pub.life, seq)).Cached > 0 {
			got = append(got, seq)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		f.t.Errorf("steps known (-want +got)\n%s", diff)
	}
	if n := f.ix.total.Load(); n != int64(len(got)) {
		f.t.Errorf("%d blocks are held, %d of this life", n, len(got))
	}
}

func (f *follower) counts(want Counts) {
	f.t.Helper()
	got := f.v.status().Counts
	got.Batches, got.Events = 0, nil
	if diff := cmp.Diff(want, got); diff != "" {
		f.t.Errorf("counts (-want +got)\n%s", diff)
	}
}

func steps(p *publisher, n int) []message {
	var list []message
	for range n {
		list = append(list, p.step())
	}
	return list
}

func TestSequenceInOrder(t *testing.T) {
	f := newFollower(t, true, &publisher{keeps: 10})
	f.replay() // Nothing yet.
	f.live(steps(f.pub, 3)...)
	f.knows(0, 1, 2)
	f.counts(Counts{Replays: 1})
}

func TestSequenceLateSubscriber(t *testing.T) {
	pub := &publisher{keeps: 4}
	steps(pub, 6)
	f := newFollower(t, true, pub)
	f.replay()
	f.knows(2, 3, 4, 5)
	f.live(pub.step())
	f.knows(2, 3, 4, 5, 6)
	f.counts(Counts{Replays: 1})
}

func TestSequenceLateSubscriberWithoutReplay(t *testing.T) {
	pub := &publisher{keeps: 4}
	steps(pub, 6)
	f := newFollower(t, false, pub)
	f.live(steps(pub, 2)...)
	f.knows(6, 7)
	f.counts(Counts{})
}

// What is published while the replay runs comes twice.
func TestSequenceReplayOverlapsLive(t *testing.T) {
	pub := &publisher{keeps: 10}
	first := steps(pub, 3)
	f := newFollower(t, true, pub)
	f.live(first[2])
	both := steps(pub, 2)
	f.live(both[0])
	f.replay()
	f.live(both[1], pub.step())
	f.knows(0, 1, 2, 3, 4, 5)
	for seq := range uint64(6) {
		if b := f.v.shelves[0].blocks[name(stepPrompt(0, seq), "")]; b.refs != 1 {
			t.Errorf("step %d was applied %d times", seq, b.refs)
		}
	}
	f.counts(Counts{Replays: 1})
}

func TestSequenceGapIsReplayed(t *testing.T) {
	pub := &publisher{keeps: 10}
	f := newFollower(t, true, pub)
	f.replay()
	m := steps(pub, 6)
	f.live(m[0], m[1], m[4])
	f.knows(0, 1)
	f.live(m[5])
	f.replay()
	f.live(pub.step())
	f.knows(0, 1, 2, 3, 4, 5, 6)
	f.counts(Counts{Gaps: 1, Replays: 2})
}

func TestSequenceGapWithoutReplay(t *testing.T) {
	pub := &publisher{keeps: 10}
	f := newFollower(t, false, pub)
	m := steps(pub, 6)
	f.live(m[0], m[1], m[4], m[5])
	f.knows(4, 5)
	f.counts(Counts{Gaps: 1, Cleared: map[string]uint64{"gap": 1}})
}

// The engine no longer has what is missing: what it has is taken.
func TestSequenceGapTooOld(t *testing.T) {
	pub := &publisher{keeps: 3}
	f := newFollower(t, true, pub)
	f.replay()
	m := steps(pub, 9)
	f.live(m[0], m[1], m[8])
	f.replay()
	f.knows(6, 7, 8)
	f.counts(Counts{Gaps: 1, Replays: 3, Cleared: map[string]uint64{"gap": 1}})
}

// The engine has all that is missing, but not the message before it: nothing
// proves that it is the same life.
func TestSequenceReplayWithoutProof(t *testing.T) {
	pub := &publisher{keeps: 3}
	f := newFollower(t, true, pub)
	f.replay()
	m := steps(pub, 5)
	f.live(m[0], m[1], m[4])
	f.replay()
	f.knows(2, 3, 4)
	f.counts(Counts{Gaps: 1, Replays: 3, Cleared: map[string]uint64{"gap": 1}})
}

// A ROUTER drops answers when they come faster than they go.
func TestSequenceReplayWithHoles(t *testing.T) {
	pub := &publisher{keeps: 100}
	steps(pub, 20)
	f := newFollower(t, true, pub)
	f.replay(5, 6, 13)
	var all []uint64
	for seq := range uint64(20) {
		all = append(all, seq)
	}
	f.knows(all...)
	f.counts(Counts{Replays: 2})
}

func TestSequenceReplayFails(t *testing.T) {
	pub := &publisher{keeps: 10}
	f := newFollower(t, true, pub)
	f.stream.replayFailed(now) // The engine is not up yet.
	m := steps(pub, 5)
	f.live(m[0], m[3])
	f.stream.replayFailed(now)
	f.live(m[4])
	f.knows(3, 4)
	f.counts(Counts{Gaps: 1, Replays: 2, FailedReplays: 2, Cleared: map[string]uint64{"gap": 1}})
	// The next gap is asked for again.
	pub.step()
	f.live(pub.step())
	f.replay()
	f.knows(3, 4, 5, 6)
}

func TestSequenceRestart(t *testing.T) {
	pub := &publisher{keeps: 10}
	f := newFollower(t, true, pub)
	f.replay()
	f.live(steps(pub, 3)...)
	pub.restart()
	f.live(pub.step())
	f.knows(0)
	// Again, and this time the first message is missed.
	f.live(steps(pub, 3)...)
	pub.restart()
	steps(pub, 1)
	f.live(pub.step())
	f.replay()
	f.knows(0, 1)
	f.counts(Counts{Restarts: 2, Replays: 2, Cleared: map[string]uint64{"restart": 2}})
}

// The new life has counted past the old one before we hear of it: only what the
// replay says of the last message known gives it away.
func TestSequenceRestartLooksLikeAGap(t *testing.T) {
	pub := &publisher{keeps: 10}
	f := newFollower(t, true, pub)
	f.replay()
	f.live(steps(pub, 3)...)
	pub.restart()
	steps(pub, 6)
	f.live(pub.step())
	f.replay()
	f.knows(0, 1, 2, 3, 4, 5, 6)
	f.counts(Counts{Gaps: 1, Restarts: 1, Replays: 3, Cleared: map[string]uint64{"restart": 1}})
}

// Restarted after a replay that ran ahead of the live messages.
func TestSequenceRestartAfterReplay(t *testing.T) {
	pub := &publisher{keeps: 10}
	steps(pub, 5)
	f := newFollower(t, true, pub)
	f.replay()
	pub.restart()
	f.live(pub.step())
	f.knows(0)
	f.counts(Counts{Restarts: 1, Replays: 1, Cleared: map[string]uint64{"restart": 1}})
}

// The engine's clock was set back meanwhile: the numbers alone tell.
func TestSequenceRestartWithClockSetBack(t *testing.T) {
	t.Run("the same number", func(t *testing.T) {
		pub := &publisher{life: 5, keeps: 10}
		f := newFollower(t, false, pub)
		f.live(steps(pub, 3)...)
		*pub = publisher{life: 4, keeps: 10}
		steps(pub, 2)
		f.live(pub.step())
		f.knows(2)
	})
	t.Run("after a replay", func(t *testing.T) {
		pub := &publisher{life: 5, keeps: 10}
		m := steps(pub, 5)
		f := newFollower(t, true, pub)
		f.replay()
		f.live(m[4]) // Had already.
		*pub = publisher{life: 4, keeps: 10}
		f.live(pub.step())
		f.knows(0)
	})
}

// What waits stays in line while the replay is asked again.
func TestSequenceWaitsThroughReplays(t *testing.T) {
	pub := &publisher{keeps: 10}
	f := newFollower(t, true, pub)
	f.replay()
	m := steps(pub, 6)
	f.live(m[0], m[5])
	for _, i := range []int{0, 1, 3} { // 2 was dropped on the way.
		f.stream.answer(now, m[i].seq, m[i].payload)
	}
	f.stream.replayed(now)
	f.knows(0, 1)
	f.stream.replayFailed(now)
	f.knows(5)
}

func TestSequenceBadFrame(t *testing.T) {
	pub := &publisher{keeps: 10}
	f := newFollower(t, true, pub)
	f.replay()
	m := steps(pub, 4)
	m[2].payload = []byte{0x91}
	f.live(m...)
	f.knows(3)
	f.counts(Counts{BadFrames: 1, Replays: 1, Cleared: map[string]uint64{"bad_frame": 1}})
}

// What waits for a replay is bounded.
func TestSequencePendingIsBounded(t *testing.T) {
	pub := &publisher{keeps: 1}
	f := newFollower(t, true, pub)
	f.replay()
	f.live(pub.step())
	pub.step()
	for range maxPending + 1 {
		f.live(pub.step())
		if n := len(f.stream.asked.pendingOrNil()); n > maxPending {
			t.Fatalf("%d messages wait", n)
		}
	}
	if f.stream.asked != nil || f.stream.next != pub.next {
		t.Errorf("still asking, at %d of %d", f.stream.next, pub.next)
	}
}

func (r *replay) pendingOrNil() []message {
	if r == nil {
		return nil
	}
	return r.pending
}

// Whatever is lost, doubled by replays or restarted: once a message of the
// present life came through and the replays were answered, nothing of another
// life is believed, and with a buffer that is long enough nothing is missing.
func TestSequenceRandom(t *testing.T) {
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 2))
		pub := &publisher{keeps: 1000}
		steps(pub, rng.IntN(5))
		f := newFollower(t, true, pub)
		for range 40 {
			switch rng.IntN(10) {
			case 0:
				f.replayNow(rng)
				pub.restart()
				if rng.IntN(3) == 0 {
					steps(pub, 50) // More than any life has published so far.
				}
				f.live(pub.step())
			case 1, 2, 3:
				pub.step() // Lost.
			case 4:
				f.replayNow(rng)
			default:
				f.live(pub.step())
			}
		}
		f.live(pub.step())
		f.replayNow(rng)
		f.live(pub.step())
		f.replayNow(rng)
		var all []uint64
		for seq := range pub.next {
			all = append(all, seq)
		}
		f.knows(all...)
		for _, b := range f.v.shelves[0].blocks {
			if b.refs != 1 {
				t.Errorf("a step was applied %d times", b.refs)
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// replayNow answers what is asked, with some answers lost at first.
func (f *follower) replayNow(rng *rand.Rand) {
	f.t.Helper()
	var lost []uint64
	if rng.IntN(3) == 0 {
		lost = append(lost, uint64(rng.IntN(20)), uint64(rng.IntN(20)))
	}
	f.replay(lost...)
}
