package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// MultiRound is the load of multi-round-qa of vLLM's production stack: users who
// share a system prompt, bring a history of their own, and ask round by round;
// each answer becomes part of the next prompt. A user's next round begins a
// fixed time after the last one did, or when its answer has ended, if that is
// later.
type MultiRound struct {
	// Users is how many there are at once, Rounds what each asks.
	Users, Rounds int
	// QPS is how many requests a second all users send together.
	QPS float64
	// SharedPrompt, History, Question and Answer are lengths in tokens: the system
	// prompt of all, each user's own, one question, and an answer at most.
	SharedPrompt     int
	History          Range
	Question, Answer int
	// IgnoreEOS makes every answer as long as Answer.
	IgnoreEOS bool
	// RampUp is the time over which the users come, evenly. 0: as in
	// multi-round-qa, the time that a user stays.
	RampUp time.Duration
	// Time ends the run: users who have asked all their rounds are replaced by
	// new ones until then. 0: nobody is replaced.
	Time time.Duration
	// MaxUnfinished holds back rounds while as many requests are unfinished; 0: no
	// limit.
	MaxUnfinished int
	// InitUserID is the number before the first user's, so that a second run
	// finds nothing cached.
	InitUserID int
	// UserHeader sends each user's number as x-user-id.
	UserHeader bool
	// WarmUp is the number of short requests sent before, which do not count.
	WarmUp int
	// Seed draws texts and lengths.
	Seed uint64
}

// DefaultMultiRound is multi-round-qa's, where that has defaults.
func DefaultMultiRound() MultiRound {
	return MultiRound{Users: 15, Rounds: 10, QPS: 3.33, SharedPrompt: 1000, History: Range{2000, 6000}, Question: 48, Answer: 96, WarmUp: 10, Seed: 1}
}

// Validate names every fault by its flag.
func (l MultiRound) Validate() error {
	return errors.Join(
		atLeast("num-users", l.Users, 1), atLeast("num-rounds", l.Rounds, 1),
		atLeast("shared-system-prompt", l.SharedPrompt, 0), atLeast("question-len", l.Question, 1), atLeast("answer-len", l.Answer, 1),
		atLeast("max-unfinished-queries", l.MaxUnfinished, 0), atLeast("warm-up", l.WarmUp, 0), positive("qps", l.QPS),
		notNegative("time", l.Time), notNegative("ramp-up", l.RampUp),
	)
}

// Size is known where nobody is replaced.
func (l MultiRound) Size() int {
	if l.Time > 0 {
		return 0
	}
	return l.Users * l.Rounds
}

// gap is the time from one round of a user to the next.
func (l MultiRound) gap() time.Duration {
	return time.Duration(float64(l.Users) / l.QPS * float64(time.Second))
}

func (l MultiRound) rampUp() time.Duration {
	if l.RampUp > 0 {
		return l.RampUp
	}
	return l.gap() * time.Duration(l.Rounds-1)
}

// Play lets the users come one after the other.
func (l MultiRound) Play(ctx context.Context, run *Run) error {
	shared := run.writer.Text(newRand(l.Seed, 0), l.SharedPrompt)
	if err := l.warmUp(ctx, run); err != nil {
		return err
	}
	limit := int64(l.MaxUnfinished)
	if limit == 0 {
		limit = int64(l.Users)
	}
	unfinished := semaphore.NewWeighted(limit)
	began := run.start()
	if l.Time > 0 {
		var cancel func()
		ctx, cancel = context.WithDeadlineCause(ctx, began.Add(l.Time), errTimeIsUp)
		defer cancel()
	}
	var users sync.WaitGroup
	for i := range l.Users {
		users.Go(func() {
			at := began.Add(l.rampUp() * time.Duration(i) / time.Duration(l.Users))
			for number := i + 1; ; number += l.Users {
				u := &user{load: l, number: l.InitUserID + number, shared: shared, unfinished: unfinished}
				next, err := u.talk(ctx, run, at)
				if err != nil || l.Time == 0 {
					return // its time is up, or the run's
				}
				at = next
			}
		})
	}
	users.Wait()
	if errors.Is(context.Cause(ctx), errTimeIsUp) {
		return nil
	}
	return context.Cause(ctx)
}

var errTimeIsUp = errors.New("the time of the run is up")

// warmUp opens connections and wakes the engines, as multi-round-qa does.
func (l MultiRound) warmUp(ctx context.Context, run *Run) error {
	group, ctx := errgroup.WithContext(ctx)
	for i := range l.WarmUp {
		group.Go(func() error {
			text := fmt.Sprintf("WARMUP: user %d.", l.InitUserID+i) + run.writer.Text(newRand(l.Seed, warmStream+uint64(i)), 100) //nolint:gosec // Not negative.
			return run.warm(ctx, &Chat{Messages: []Message{{"user", text}}, MaxTokens: 100})
		})
	}
	return group.Wait()
}

// Streams of random numbers: 0 is what all share, each user has its own from
// its number on, and warming up comes far behind them.
const warmStream = 1 << 40

// user is one who asks round by round. Owned by the goroutine of talk.
type user struct {
	load       MultiRound
	number     int
	shared     string
	unfinished *semaphore.Weighted
}

// talk asks all rounds, the first one at at, and returns when the next one would
// be due. The error says that ctx has ended.
func (u *user) talk(ctx context.Context, run *Run, at time.Time) (next time.Time, err error) {
	rng := newRand(u.load.Seed, uint64(u.number)) //nolint:gosec // Not negative.
	history := u.load.History.From + rng.IntN(u.load.History.To-u.load.History.From+1)
	begin := u.shared + fmt.Sprintf("\n\nUser %d:", u.number) + run.writer.Text(rng, history) + "\n\n"
	var header http.Header
	if u.load.UserHeader {
		header = http.Header{"X-User-Id": {strconv.Itoa(u.number)}}
	}
	var messages []Message
	for round := 1; round <= u.load.Rounds; round++ {
		text := fmt.Sprintf("Question %d:", round) + run.writer.Text(rng, u.load.Question)
		if len(messages) == 0 {
			text = begin + text
		}
		chat := &Chat{Messages: append(messages, Message{"user", text}), MaxTokens: u.load.Answer, IgnoreEOS: u.load.IgnoreEOS, Header: header}
		if err := sleep(ctx, at); err != nil {
			return at, err
		}
		if err := u.unfinished.Acquire(ctx, 1); err != nil {
			return at, err
		}
		record := run.ask(ctx, u.number, round, time.Time{}, chat)
		u.unfinished.Release(1)
		at = record.Sent.Add(u.load.gap())
		// A question that was not answered is no part of the conversation.
		if record.Fault == nil {
			messages = append(chat.Messages, Message{"assistant", record.Text})
		}
	}
	return at, ctx.Err()
}

func atLeast(flag string, value, least int) error {
	if value < least {
		return fmt.Errorf("--%s: is %d; write at least %d", flag, value, least)
	}
	return nil
}

func positive(flag string, value float64) error {
	if !(value > 0) {
		return fmt.Errorf("--%s: is %g; write a number above 0", flag, value)
	}
	return nil
}

func notNegative(flag string, value time.Duration) error {
	if value < 0 {
		return fmt.Errorf("--%s: is %s; write a duration such as 100s, or 0", flag, value)
	}
	return nil
}
