//go:build !cgo || nonative

package native

import "time"

// built: the library is not part of this program. LoadTokenizer and
// CompileTemplate return ErrNotBuilt, so that no handle ever exists.
const built = false

type tokenizerHandle struct{}

func loadTokenizer([]byte, []byte, Engine, int) (h tokenizerHandle, vocab int, err error) {
	return h, 0, ErrNotBuilt
}
func (tokenizerHandle) encode(string, bool) ([]uint32, error) { return nil, ErrNotBuilt }
func (tokenizerHandle) decode([]uint32) (string, error)       { return "", ErrNotBuilt }
func (tokenizerHandle) tokenID(string) (uint32, bool)         { return 0, false }
func (tokenizerHandle) cacheStats() (s CacheStats, on bool)   { return s, false }
func (tokenizerHandle) free()                                 {}

type templateHandle struct{}

func compileTemplate(string) (h templateHandle, format string, names []string, err error) {
	return h, "", nil, ErrNotBuilt
}

func (templateHandle) render([]byte, time.Time) (h textHandle, err error) {
	return h, ErrNotBuilt
}
func (templateHandle) free() {}

type textHandle struct{}

func (textHandle) view() string { return "" }
func (textHandle) free()        {}
