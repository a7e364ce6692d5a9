package manifests_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"
)

// builtin are the kinds that Kubernetes itself has.
var builtin = map[string]func() any{
	"v1 ConfigMap":             func() any { return &corev1.ConfigMap{} },
	"v1 PersistentVolumeClaim": func() any { return &corev1.PersistentVolumeClaim{} },
	"v1 Service":               func() any { return &corev1.Service{} },
	"v1 ServiceAccount":        func() any { return &corev1.ServiceAccount{} },
	"apps/v1 Deployment":       func() any { return &appsv1.Deployment{} },
	"apps/v1 StatefulSet":      func() any { return &appsv1.StatefulSet{} },

	"networking.k8s.io/v1 NetworkPolicy": func() any { return &networkingv1.NetworkPolicy{} },
}

// manifest is one document of a file.
type manifest struct {
	file string
	obj  map[string]any
}

func (m manifest) kind() string { return fmt.Sprint(m.obj["apiVersion"], " ", m.obj["kind"]) }

func (m manifest) String() string {
	meta, _ := m.obj["metadata"].(map[string]any)
	return fmt.Sprint(m.file, " ", m.obj["kind"], " ", meta["name"])
}

// examples are the manifests below ../../examples.
func examples(t *testing.T) (all []manifest) {
	t.Helper()
	root := "../../examples"
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".yaml" {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		all = append(all, manifests(t, name, text)...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("found %d manifests below %s", len(all), root)
	}
	return all
}

// manifests are the documents of a text; what is no Kubernetes object, such as
// Envoy's own configuration, is left out.
func manifests(t *testing.T, file string, text []byte) (all []manifest) {
	t.Helper()
	reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		obj := object(t, file, document)
		if obj["apiVersion"] != nil || obj["kind"] != nil {
			all = append(all, manifest{file, obj})
		}
	}
}

// object is a document as an API server reads it, whole numbers as such.
func object(t *testing.T, file string, document []byte) (obj map[string]any) {
	t.Helper()
	text, err := sigsyaml.YAMLToJSONStrict(document)
	if err == nil {
		err = json.Unmarshal(text, &obj)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return obj
}

// check refuses what an API server would refuse of m.
func check(t *testing.T, known schemas, m manifest) error {
	t.Helper()
	if k, ok := known.kind(t, m.kind()); ok {
		return errors.Join(strict(t, m.obj["metadata"], &metav1.ObjectMeta{}), k.check(t.Context(), m.obj))
	}
	empty, ok := builtin[m.kind()]
	if !ok {
		return fmt.Errorf("%s: no schema is known; add its definition to released, or its type to builtin", m.kind())
	}
	return strict(t, m.obj, empty())
}

// strict refuses of v what is not in the type that to points at.
func strict(t *testing.T, v, to any) error {
	t.Helper()
	text, err := sigsyaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return sigsyaml.UnmarshalStrict(text, to)
}

// Every example is what an API server takes, and no longer where any field is
// misspelt.
func TestExamples(t *testing.T) {
	known := known(t)
	var seen []string
	for _, m := range examples(t) {
		seen = append(seen, m.kind())
		for _, path := range fields(m.obj, nil) {
			wrong := manifest{m.file, runtime.DeepCopyJSON(m.obj)}
			misspell(wrong.obj, path)
			if err := check(t, known, wrong); err == nil {
				t.Errorf("%s: accepted with %s misspelt", m, strings.Join(path, "."))
			}
		}
		if err := check(t, known, m); err != nil {
			t.Errorf("%s: %v", m, err)
		}
	}
	for _, kind := range []string{
		"networking.istio.io/v1alpha3 EnvoyFilter", "networking.istio.io/v1 DestinationRule", "networking.istio.io/v1 VirtualService",
		"gateway.envoyproxy.io/v1alpha1 EnvoyExtensionPolicy", "gateway.envoyproxy.io/v1alpha1 BackendTrafficPolicy",
		"inference.networking.k8s.io/v1 InferencePool", "gateway.networking.k8s.io/v1 HTTPRoute", "apps/v1 Deployment", "networking.k8s.io/v1 NetworkPolicy",
	} {
		if !slices.Contains(seen, kind) {
			t.Errorf("no example has a %s", kind)
		}
	}
}

// free are mappings whose keys are anybody's: labels, data, patches of Envoy.
var free = []string{"labels", "matchLabels", "annotations", "data", "value", "nodeSelector", "requests", "limits", "emptyDir"}

// fields are the paths of all keys of v that a schema has a say in, lists by
// index.
func fields(v any, at []string) (paths [][]string) {
	switch v := v.(type) {
	case map[string]any:
		for key, child := range v {
			path := append(slices.Clone(at), key)
			if len(at) > 0 { // apiVersion, kind, metadata and spec are looked at by themselves
				paths = append(paths, path)
			}
			if !slices.Contains(free, key) && !isLabels(key, child) {
				paths = append(paths, fields(child, path)...)
			}
		}
	case []any:
		for i, child := range v {
			paths = append(paths, fields(child, append(slices.Clone(at), fmt.Sprint(i)))...)
		}
	}
	return paths
}

// isLabels reports whether a selector is a mapping of labels alone.
func isLabels(key string, v any) bool {
	labels, _ := v.(map[string]any)
	for _, value := range labels {
		if _, ok := value.(string); !ok {
			return false
		}
	}
	return key == "selector"
}

// misspell renames the key at path.
func misspell(v any, path []string) {
	for _, step := range path[:len(path)-1] {
		switch at := v.(type) {
		case map[string]any:
			v = at[step]
		case []any:
			var i int
			_, _ = fmt.Sscan(step, &i)
			v = at[i]
		}
	}
	object, key := v.(map[string]any), path[len(path)-1]
	object[key+"x"] = object[key]
	delete(object, key)
}

// "EnvoyExtensionPolicy refuses failOpen: true with body FullDuplexStreamed": the
// rules of the schemas are really asked.
func TestRulesAreAsked(t *testing.T) {
	known := known(t)
	policy := `
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyExtensionPolicy
metadata: {name: a, namespace: b}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: c}]
  extProc:
    - backendRefs: [{name: d, port: 9002}]
      failOpen: %v
      processingMode: {request: {body: %s}}
`
	for _, c := range []struct {
		failOpen bool
		body     string
		refused  string
	}{
		{true, "Buffered", ""},
		{false, "FullDuplexStreamed", ""},
		{true, "FullDuplexStreamed", "If FullDuplexStreamed body processing mode is used, FailOpen must be false"},
		{true, "Sideways", "Unsupported value"},
	} {
		err := check(t, known, manifests(t, "policy", fmt.Appendf(nil, policy, c.failOpen, c.body))[0])
		if c.refused == "" && err != nil || c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)) {
			t.Errorf("failOpen %v, %s: %v, want %q", c.failOpen, c.body, err, c.refused)
		}
	}
}
