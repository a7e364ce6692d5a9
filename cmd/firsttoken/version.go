package main

import (
	"cmp"
	"runtime/debug"
	"strings"
)

// release is what a build without a checkout says of itself: go build -ldflags
// "-X main.release=v1.2.3".
var release string

// version is the module's version with the commit it was built from, as far as
// the build knows them.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := cmp.Or(release, strings.Trim(info.Main.Version, "()"))
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" && !strings.Contains(v, setting.Value[:min(12, len(setting.Value))]) {
			v += " " + setting.Value
		}
	}
	return v + " " + info.GoVersion
}
