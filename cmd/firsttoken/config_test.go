package main

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/firsttoken/firsttoken/prompt"
)

var update = flag.Bool("update", false, "write the expected files anew; read the diff")

// checkFile runs "firsttoken check --config file" and returns what it says.
func checkFile(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := newRootCommand()
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{"check"}, args...))
	err := root.Execute()
	return out.String(), err
}

// Every kind of mistake has a file of its own, NAME.bad.yml, and beside it
// NAME.bad.txt, what an operator reads.
func TestBadConfigurations(t *testing.T) {
	files, err := filepath.Glob("testdata/config/*.bad.yml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".bad.yml"), func(t *testing.T) {
			out, err := checkFile(t, "--config", file)
			if err == nil {
				t.Fatalf("accepted:\n%s", out)
			}
			got := strings.TrimPrefix(err.Error(), file+":\n") + "\n"
			expected := strings.TrimSuffix(file, ".yml") + ".txt"
			if *update {
				if err := os.WriteFile(expected, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(expected)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestGoodConfigurations(t *testing.T) {
	files, err := filepath.Glob("testdata/config/*.good.yml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".good.yml"), func(t *testing.T) {
			out, err := checkFile(t, "--config", file)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(out, "ok: ") {
				t.Errorf("says %q", out)
			}
		})
	}
}

// What the defaults write as YAML is read back as the defaults: no key is
// refused that a section has, and none is lost.
func TestDefaultsReadBack(t *testing.T) {
	text, err := yaml.Marshal(defaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	var got config
	if faults, err := decodeYAML(text, &got); err != nil || len(faults) > 0 {
		t.Fatalf("%v %v\nin\n%s", err, errors.Join(faults...), text)
	}
	again, err := yaml.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(text), string(again)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f.yml")
	if err := os.WriteFile(file, []byte("scoring: {policy: roundrobin}\nserver: {listen: 'unix:/run/s'}\nlog: {level: warn}\nendpoints: [{address: 'e:1'}]\nprompt: {models: [{name: m, tokenizer: tok}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		args  string
		fault string // in the error; empty: none
		check func(config) bool
	}{
		{"quick start", "--backends a:1,https://b:2 --model m --tokenizer t --lmcache-instances x,y", "", func(c config) bool {
			return len(c.Endpoints) == 2 && c.Endpoints[1].Address == "https://b:2" && c.Endpoints[1].LMCache.Instance == "y" &&
				c.Prompt.Models[0].Name == "m" && c.Prompt.Models[0].Tokenizer == "t" && c.Scoring.Policy == "ttft"
		}},
		{"the file alone", "--config " + file, "", func(c config) bool {
			return c.Scoring.Policy == "roundrobin" && c.Server.Listen == "unix:/run/s" && c.Log.Level == "warn" &&
				c.Prompt.Models[0].Tokenizer == filepath.Join(filepath.Dir(file), "tok")
		}},
		{"flags win", "--policy trapezoid --listen :1 --admin-listen :2 --log-level debug --log-format text --config " + file, "", func(c config) bool {
			return c.Scoring.Policy == "trapezoid" && c.Server.Listen == ":1" && c.Admin.Listen == ":2" && c.Log == logConfig{"debug", "text"}
		}},
		{"nothing", "", "endpoints: is empty", nil},
		{"endpoints twice", "--backends a:1 --config " + file, "--backends: the file lists endpoints too", nil},
		{"model twice", "--model m --config " + file, "--model: the file lists prompt.models too", nil},
		{"fewer instances", "--backends a:1,b:2 --lmcache-instances x", "--lmcache-instances: has 1 ids for 2 backends", nil},
		{"more instances", "--backends a:1 --lmcache-instances x,y", "--lmcache-instances: has 2 ids for 1 backends", nil},
		{"empty instance", "--backends a:1,b:2 --lmcache-instances x,", "id of backend b:2 is empty", nil},
		{"same instance", "--backends a:1,b:2 --lmcache-instances x,x", `endpoints[1].lmcache.instance: "x" is the instance of endpoints[0] too`, nil},
		{"instances alone", "--lmcache-instances x --config " + file, "--lmcache-instances: names the instances of --backends, which is not given", nil},
		{"tokenizer alone", "--backends a:1 --tokenizer t", "--tokenizer: give --model too", nil},
		{"unknown policy", "--backends a:1 --policy best", `scoring.policy: unknown policy "best"`, nil},
		{"unknown level", "--backends a:1 --log-level loud", `log.level: unknown level "loud"`, nil},
		{"bad backend", "--backends a", `endpoints[0].address: "a" has no port`, nil},
		{"no such file", "--config /nonexistent.yml", "--config: open /nonexistent.yml", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var flags configFlags
			set := pflag.NewFlagSet("", pflag.ContinueOnError)
			flags.register(set)
			if err := set.Parse(strings.Fields(tt.args)); err != nil {
				t.Fatal(err)
			}
			cfg, err := flags.load(set)
			switch {
			case tt.fault != "" && (err == nil || !strings.Contains(err.Error(), tt.fault)):
				t.Errorf("error %v, want %q in it", err, tt.fault)
			case tt.fault == "" && err != nil:
				t.Error(err)
			case tt.check != nil && !tt.check(cfg):
				t.Errorf("%+v", cfg)
			}
		})
	}
}

// The walk over the nodes and the decoder must agree on what is good: what the
// walk misses, the decoder finds, but without a path.
func FuzzYAMLFaults(f *testing.F) {
	for _, pattern := range []string{"testdata/config/*.good.yml", "testdata/config/*.bad.yml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		cfg := defaultConfig()
		faults, bad := decodeYAML(text, &cfg)
		strict := yaml.NewDecoder(bytes.NewReader(text))
		strict.KnownFields(true)
		err := strict.Decode(new(config))
		if err != nil && !errors.Is(err, io.EOF) && bad == nil && len(faults) == 0 {
			t.Errorf("the decoder says %v, we say nothing", err)
		}
	})
}

// A path stays one, whatever folder the file is in: ./org/name is no model on a hub.
func TestPathsAreNoHubIDs(t *testing.T) {
	for tokenizer, want := range map[string]string{"./org/name": "./org/name", "org/name": "org/name", "/org/name": "/org/name"} {
		cfg := defaultConfig()
		cfg.Prompt.Models = []prompt.ModelConfig{{Name: "m", Tokenizer: tokenizer}}
		cfg.resolvePaths(".")
		if got := cfg.Prompt.Models[0].Tokenizer; got != want || onHub(got) != (tokenizer == "org/name") {
			t.Errorf("%s becomes %s, on a hub: %t", tokenizer, got, onHub(got))
		}
	}
}
