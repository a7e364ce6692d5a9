package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// printManifests is what the command says of a configuration.
func printManifests(t *testing.T, kind, text string, flags ...string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "firsttoken.yml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	root := newRootCommand()
	root.SetOut(&out)
	root.SetErr(io.Discard)
	root.SetArgs(append([]string{"envoy", "manifests", "--kind", kind, "--config", file}, flags...))
	err := root.Execute()
	return out.String(), err
}

// inPod is a configuration that every kind without TLS takes; what is added
// begins with a key of its own.
const inPod = `
endpoints: [{address: "vllm.inference.svc.cluster.local:8000"}]
prompt: {models: [{name: m, tokenizer: org/name}]}
`

// What a pod would not have, or a gateway not obey, is named before it is printed.
func TestManifestsOfConfigs(t *testing.T) {
	const without = "lmcache: {enabled: false}\n"
	workers := func(key string) string {
		return "lmcache: {keys: {lmcache_version: 0.5.6, python_version: \"3.12\"}, controller: {" + key + "}}\n"
	}
	for _, c := range []struct {
		name, kind, text string
		flags            []string
		want             string // empty: it is printed
	}{
		{"plain", "istio", without, nil, ""},
		{"workers", "istio", workers(""), nil, "lmcache.controller.advertise_heartbeat: is empty"},
		{"where workers beat", "sidecar", workers(""), []string{"--name", "x"}, "write x.inference.svc.cluster.local"},
		{"workers told", "istio", workers("advertise_heartbeat: firsttoken.inference.svc.cluster.local"), nil, ""},
		{"workers that never beat", "istio", workers(`heartbeat: ""`), nil, ""},
		{"TLS", "sidecar", without + "server: {tls: {enabled: true}}\n", nil, "server.tls.enabled: is true"},
		{"metadata alone", "envoy-gateway", without + "server: {destination_header: false}\n", nil, "server.destination_header: is false"},
		{"metadata alone", "istio", without + "server: {destination_header: false}\n", nil, ""},
		{"standby", "istio", without + "server: {services: [\"a:9002\", \"b:9002\"]}\n", nil, "server.services: there are 2"},
		{"decisions", "istio", without + "decisions: {file: /data/d.jsonl}\n", []string{"--mount", "claim/data:/data"}, `decisions.file: "/data/d.jsonl"`},
		{"decisions kept", "istio", without + "decisions: {file: /var/lib/firsttoken/d.jsonl}\n", nil, ""},
		{"switch", "istio", without + "server: {off_file: /run/off}\n", nil, `server.off_file: "/run/off"`},
		{"switch kept", "istio", without + "server: {off_file: /var/lib/firsttoken/off}\n", nil, ""},
		{"switch mounted", "istio", without + "server: {off_file: /switch/off}\n", []string{"--mount", "configmap/switch:/switch"}, ""},
		{
			"template", "istio", without + "prompt: {models: [{name: m, tokenizer: /models/m, chat_template: /tmp/t.jinja}]}\n",
			[]string{"--mount", "claim/models:/models"},
			`prompt.models[0].chat_template: "/tmp/t.jinja"`,
		},
	} {
		t.Run(c.name+" "+c.kind, func(t *testing.T) {
			text := inPod + c.text
			if strings.Contains(c.text, "prompt:") {
				text = strings.Replace(text, "prompt: {models: [{name: m, tokenizer: org/name}]}\n", "", 1)
			}
			out, err := printManifests(t, c.kind, text, c.flags...)
			switch {
			case c.want == "" && (err != nil || !strings.Contains(out, "kind: Deployment")):
				t.Errorf("%v, printed %q", err, out)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || out != ""):
				t.Errorf("%v, want %q; printed %q", err, c.want, out)
			}
		})
	}
}

// Engines that report to the service of the example can be printed as it says.
func TestManifestsOfLMCacheExample(t *testing.T) {
	text, err := os.ReadFile("../../examples/vllm-lmcache/firsttoken.yml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := printManifests(t, "sidecar", string(text)); err != nil {
		t.Error(err)
	}
}

// An image's program says what it was built of, though it saw no checkout.
func TestReleaseIsTheVersion(t *testing.T) {
	before := release
	defer func() { release = before }()
	release = "v1.2.3"
	if v := version(); !strings.HasPrefix(v, "v1.2.3 ") {
		t.Errorf("got %q", v)
	}
}
