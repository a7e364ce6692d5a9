package spelling

import "testing"

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"", "abc", 3},
		{"policy", "policy", 0},
		{"polcy", "policy", 1},
		{"plicoy", "policy", 2},
		{"kitten", "sitting", 3},
	} {
		if got := Distance(c.a, c.b); got != c.want {
			t.Errorf("%q to %q: %d, want %d", c.a, c.b, got, c.want)
		}
		if got := Distance(c.b, c.a); got != c.want {
			t.Errorf("%q to %q: %d, want %d", c.b, c.a, got, c.want)
		}
	}
}

// twin is the definition: what is cheapest of removing, inserting and replacing the
// first byte.
func twin(a, b string) int {
	switch {
	case a == "":
		return len(b)
	case b == "":
		return len(a)
	case a[0] == b[0]:
		return twin(a[1:], b[1:])
	}
	return 1 + min(twin(a[1:], b), twin(a, b[1:]), twin(a[1:], b[1:]))
}

func TestDistanceTwin(t *testing.T) {
	words := []string{""}
	for _, w := range []string{"", "a", "b", "aa", "ab", "ba"} {
		for _, c := range []string{"a", "b", "ca", "bc"} {
			words = append(words, w+c)
		}
	}
	for _, a := range words {
		for _, b := range words {
			if got, want := Distance(a, b), twin(a, b); got != want {
				t.Errorf("%q to %q: %d, want %d", a, b, got, want)
			}
		}
	}
}
