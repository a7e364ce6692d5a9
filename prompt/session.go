package prompt

import "strings"

// maxSession is how many bytes of a session's name count: whoever sends more must
// not make every booking as large.
const maxSession = 256

// ShortSession is what counts of a session's name; a copy where it is cut.
func ShortSession(name string) string {
	if len(name) > maxSession {
		return strings.Clone(name[:maxSession])
	}
	return name
}

// sessionOf is the session that a member of a body names: a string, or a number as
// it is written. Anything else names none.
func sessionOf(v value) string {
	switch v.kind() {
	case kindString:
		return strings.Clone(ShortSession(v.str()))
	case kindInt, kindFloat:
		return string(v.raw()[:min(len(v.raw()), maxSession)])
	default:
		return ""
	}
}
