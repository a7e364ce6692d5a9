package state

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Config says where what was learnt is kept over a restart.
type Config struct {
	// Directory is the folder in which the learnt speed of the engines is kept
	// (fits.json); it is made where it is not there. Empty: the one that systemd
	// gives (StateDirectory=, in the environment STATE_DIRECTORY), else nothing is
	// kept and each start learns anew, from about the twentieth request on well
	// enough. Two replicas may share it: the one that writes last is right.
	Directory string `yaml:"directory"`
	// Interval is the time between two writes, where anything changed: what a
	// crash loses at most. It is written at the end too.
	Interval time.Duration `yaml:"interval"`
}

// DefaultConfig is what holds where the operator says nothing.
func DefaultConfig() Config { return Config{Interval: time.Minute} }

// Validate joins all faults, each beginning with its path below path.
func (c Config) Validate(path string) error {
	if c.Interval < 100*time.Millisecond {
		return fmt.Errorf("%s.interval: is %s; write a duration of at least 100ms, such as 1m", path, c.Interval)
	}
	return nil
}

// Folder is Directory, or the one that systemd gives; empty: nothing is kept.
func (c Config) Folder() string {
	// systemd lists several with colons between; the first one is the unit's.
	given, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":")
	return cmp.Or(c.Directory, given)
}

// file is where the fits are in a folder.
func file(folder string) string { return filepath.Join(folder, "fits.json") }
