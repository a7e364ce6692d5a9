package test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// No container engine builds the image in make test; what it is made of is there
// at least, and fits the rest.
func TestDockerfile(t *testing.T) {
	file := read(t, "../Dockerfile")
	found := func(pattern string) string {
		m := regexp.MustCompile(pattern).FindStringSubmatch(file)
		if m == nil {
			t.Fatalf("the Dockerfile has no %s", pattern)
		}
		return m[1]
	}
	if version := found(`(?m)^ARG GO=(\S+)`); !strings.Contains(read(t, "../go.mod"), "\ngo "+version+".") {
		t.Errorf("Go %s is not that of go.mod", version)
	}
	if user := found(`(?m)^USER (\d+):`); !strings.Contains(read(t, "../manifests/service.go"), "const user = "+user+"\n") {
		t.Errorf("user %s is not that of the manifests", user)
	}
	// The program in the image knows its version: from a build argument of its own
	// stage, by the name that the program has for it.
	stage, _, _ := strings.Cut(file, "\nFROM debian")
	variable := found(`-X main\.(\w+)=\$\{VERSION\}`)
	if !strings.Contains(read(t, "../cmd/firsttoken/version.go"), "\nvar "+variable+" string\n") || !strings.Contains(stage, "\nARG VERSION=") {
		t.Errorf("nothing takes the version that is passed as main.%s", variable)
	}
	for _, script := range []string{"prompt/native/build.sh", "test/tools/notices.sh"} {
		if info, err := os.Stat("../" + script); !strings.Contains(file, script) || err != nil || info.Mode()&0o100 == 0 {
			t.Errorf("%s is not called, or cannot be (%v)", script, err)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^COPY ([^-\n]+) \S+$`).FindAllStringSubmatch(file, -1) {
		for source := range strings.FieldsSeq(m[1]) {
			if !exists("../" + source) {
				t.Errorf("%s is copied, but not there", source)
			}
		}
	}
}
