package manifests_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/yaml"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
)

// released are the gateways whose schemas are used, with the files below their
// module that have them, and the sum of its content.
var released = []struct {
	module, sum string
	files       []string
}{
	{
		"sigs.k8s.io/gateway-api-inference-extension@v1.6.0", "h1:cjtwMJYcTnLXBYE5ffR1/hHhn7U1aIFfe2RITYmOXVA=",
		[]string{"config/crd/bases/inference.networking.k8s.io_inferencepools.yaml"},
	},
	{
		"github.com/envoyproxy/gateway@v1.9.1", "h1:vAVp6/AlBXJ1aOhp1mxL7fNEzVEfjADUguUhm2wzxQY=",
		[]string{"charts/gateway-crds-helm/templates/standard-gatewayapi-crds.yaml", "charts/gateway-crds-helm/templates/generated/*.yaml"},
	},
	{
		"istio.io/api@v1.31.1", "h1:5Yb5ihcz4YQsCkciusK7DnFpBMwRB6EFWeUKH1Atuyk=",
		[]string{"kubernetes/customresourcedefinitions.gen.yaml"},
	},
}

// kind is one version of a custom resource.
type kind struct {
	structural *schema.Structural
	validator  validation.SchemaValidator
	rules      *cel.Validator // nil where the schema has none
}

// schemas are the kinds of released, by apiVersion and kind. Each is compiled when
// it is first wanted; for one test only.
type schemas struct {
	versions map[string]*apiextensionsv1.CustomResourceValidation
	compiled map[string]kind
}

func known(t *testing.T) schemas {
	t.Helper()
	all := schemas{map[string]*apiextensionsv1.CustomResourceValidation{}, map[string]kind{}}
	for _, r := range released {
		dir := download(t, r.module, r.sum)
		for _, pattern := range r.files {
			files, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil || len(files) == 0 {
				t.Fatalf("%s has no %s (%v)", r.module, pattern, err)
			}
			for _, file := range files {
				for _, crd := range definitions(t, file) {
					for _, version := range crd.Spec.Versions {
						all.versions[crd.Spec.Group+"/"+version.Name+" "+crd.Spec.Names.Kind] = version.Schema
					}
				}
			}
		}
	}
	return all
}

// download is the folder of a module in Go's cache.
func download(t *testing.T, module, sum string) string {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", module)
	cmd.Dir = t.TempDir() // outside of every module: none of their own modules are wanted
	out, err := cmd.Output()
	var m struct{ Dir, Sum, Error string }
	if jsonErr := json.Unmarshal(out, &m); err != nil || jsonErr != nil || m.Error != "" {
		t.Fatalf("go mod download %s: %v %s", module, errors.Join(err, jsonErr), m.Error)
	}
	if m.Sum != sum {
		t.Fatalf("%s has the sum %s, want %s", module, m.Sum, sum)
	}
	return m.Dir
}

// definitions reads a file of a Helm chart or of plain YAML. The lines that begin
// with a template's braces only switch the file on and off.
func definitions(t *testing.T, file string) (crds []*apiextensionsv1.CustomResourceDefinition) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var plain bytes.Buffer
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "{{") {
			plain.WriteString(line)
		}
	}
	decoder := yaml.NewYAMLOrJSONDecoder(&plain, 4096)
	for {
		crd := &apiextensionsv1.CustomResourceDefinition{}
		switch err := decoder.Decode(crd); {
		case errors.Is(err, io.EOF):
			return crds
		case err != nil:
			t.Fatalf("%s: %v", file, err)
		case crd.Kind == "CustomResourceDefinition":
			crds = append(crds, crd)
		}
	}
}

// kind is that of a name such as "networking.istio.io/v1 Gateway".
func (s schemas) kind(t *testing.T, name string) (k kind, ok bool) {
	t.Helper()
	if k, ok := s.compiled[name]; ok {
		return k, true
	}
	version, ok := s.versions[name]
	if !ok {
		return kind{}, false
	}
	var internal apiextensions.CustomResourceValidation
	if err := apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(version, &internal, nil); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	structural, err := schema.NewStructural(internal.OpenAPIV3Schema)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	validator, _, err := validation.NewSchemaValidator(internal.OpenAPIV3Schema)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	k = kind{structural, validator, cel.NewValidator(structural, true, celconfig.PerCallLimit)}
	s.compiled[name] = k
	return k, true
}

// check is what an API server does with a new object under strict field
// validation. It leaves defaults in obj.
func (k kind) check(ctx context.Context, obj map[string]any) error {
	var faults field.ErrorList
	options := schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}
	for _, path := range pruning.PruneWithOptions(runtime.DeepCopyJSON(obj), k.structural, true, options) {
		faults = append(faults, field.Forbidden(field.NewPath(path), "unknown field"))
	}
	defaulting.PruneNonNullableNullsWithoutDefaults(obj, k.structural)
	defaulting.Default(obj, k.structural)
	faults = append(faults, validation.ValidateCustomResource(nil, obj, k.validator)...)
	faults = append(faults, listtype.ValidateListSetsAndMaps(nil, k.structural, obj)...)
	if k.rules != nil {
		broken, left := k.rules.Validate(ctx, nil, k.structural, obj, nil, celconfig.RuntimeCELCostBudget)
		if faults = append(faults, broken...); left < 0 {
			return errors.New("the rules cost too much")
		}
	}
	return faults.ToAggregate()
}
