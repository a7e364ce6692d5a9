package simulate

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Seconds is a time on the command line: 300 and 5m are the same.
type Seconds time.Duration

// Set implements pflag.Value.
func (s *Seconds) Set(text string) error {
	d, err := parseSeconds(text)
	*s = Seconds(d)
	return err
}

// String implements pflag.Value.
func (s *Seconds) String() string { return time.Duration(*s).String() }

// Type implements pflag.Value; help shows it.
func (s *Seconds) Type() string { return "time" }

// parseSeconds reads a duration, or a number of seconds, of at least 0.
func parseSeconds(text string) (time.Duration, error) {
	if n, err := strconv.ParseFloat(text, 64); err == nil {
		if n < 0 || n > math.MaxInt64/float64(2*time.Second) || math.IsNaN(n) {
			return 0, fmt.Errorf("%q is out of range; write seconds of at least 0", text)
		}
		return time.Duration(n * float64(time.Second)), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is no time; write seconds such as 300, or 5m", text)
	}
	return d, nil
}

// Tokens is a number of tokens on the command line: 160000 and 160k are the
// same. Below 0 it was not given.
type Tokens int

// Set implements pflag.Value.
func (t *Tokens) Set(text string) error {
	n, err := parseTokens(text)
	*t = Tokens(n)
	return err
}

// String implements pflag.Value.
func (t *Tokens) String() string {
	if *t < 0 {
		return ""
	}
	return strconv.Itoa(int(*t))
}

// Type implements pflag.Value; help shows it.
func (t *Tokens) Type() string { return "tokens" }

// parseTokens reads 160000, 160k or 0.16M.
func parseTokens(text string) (int, error) {
	number, unit := text, 1.0
	switch {
	case strings.HasSuffix(text, "k"):
		number, unit = strings.TrimSuffix(text, "k"), 1e3
	case strings.HasSuffix(text, "M"):
		number, unit = strings.TrimSuffix(text, "M"), 1e6
	}
	n, err := strconv.ParseFloat(number, 64)
	if n *= unit; err != nil || n < 0 || n > 1e12 || n != math.Trunc(n) {
		return 0, fmt.Errorf("%q is no number of tokens; write one such as 160000 or 160k", text)
	}
	return int(n), nil
}
