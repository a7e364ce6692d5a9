package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	diff "github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/firsttoken/firsttoken/prompt"
)

//go:generate go test . -run ^TestConfigurationDoc$ -count=1 -update

const configurationDoc = "../../docs/configuration.md"

// docs/configuration.md says what the code says: keys and defaults by
// reflection, the meaning from the fields' comments.
func TestConfigurationDoc(t *testing.T) {
	d := &configDoc{t: t, seen: make(map[reflect.Type]string), comments: make(map[string]map[string]string)}
	got := d.page()
	if *update {
		if err := os.WriteFile(configurationDoc, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(configurationDoc)
	if err != nil {
		t.Fatal(err)
	}
	if diff := diff.Diff(string(want), got); diff != "" {
		t.Errorf("docs/configuration.md is not what the code says; run make generate (-file +code)\n%s", diff)
	}
}

// configDoc writes the page. comments has the field comments of each package
// that was parsed, by import path and "Type.Field".
type configDoc struct {
	t        *testing.T
	seen     map[reflect.Type]string // where the keys of a struct are listed
	comments map[string]map[string]string
}

const docHead = `<!-- Generated from the code by "make generate"; do not edit. -->
# Configuration

The service reads one YAML file, ` + "`firsttoken serve --config FILE`" + `. Every key has a
default, except that there must be at least one endpoint. Unknown keys, keys that
come twice and values of the wrong kind are refused; ` + "`firsttoken check --config FILE`" + `
names every fault in one go. Durations have a unit (` + "`500ms`, `5s`, `10m`" + `). Paths are
relative to the file's folder. A small file:

` + "```yaml" + `
endpoints:
  - address: 10.0.0.1:8000
    lmcache: {instance: engine-0}
  - address: 10.0.0.2:8000
    lmcache: {instance: engine-1}
prompt:
  models:
    - {name: qwen, tokenizer: /models/qwen}
` + "```" + `

` + "`VLLM_API_KEY`" + ` in the environment is sent as bearer token on the service's own calls
to engines (health, models, render). It is in no file and no log.

The file is read again when it changes, and at once on SIGHUP. ` + "`endpoints`, `canary` and `log.level`" + `
follow it while the service runs, without dropping a stream; an engine whose address stays
is still the same to the service. Other keys that have changed need a restart, and are named
in the log and in ` + "`/status`" + `. A file with a fault changes nothing and is named there too, and by
` + "`firsttoken_config_last_reload_successful`" + ` being 0. Envoy hears of new engines by [xDS](xds.md);
one with a static configuration needs that printed anew.

## All keys
`

func (d *configDoc) page() string {
	var b strings.Builder
	b.WriteString(docHead)
	defaults := reflect.ValueOf(defaultConfig())
	for _, field := range yamlFields(defaults.Type()) {
		key := yamlKey(field)
		fmt.Fprintf(&b, "\n### `%s`\n\n%s\n\n| key | default | meaning |\n| --- | --- | --- |\n", key, d.comment(defaults.Type(), field))
		d.rows(&b, defaults.FieldByIndex(field.Index), key)
	}
	d.flags(&b)
	return b.String()
}

// rows writes a row for every key below path.
func (d *configDoc) rows(b *strings.Builder, v reflect.Value, path string) {
	switch {
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct:
		d.rows(b, element(v.Type().Elem()), path+"[]")
	case v.Kind() == reflect.Map && v.Type().Elem().Kind() == reflect.Struct:
		d.rows(b, element(v.Type().Elem()), path+".NAME")
	case v.Kind() == reflect.Map:
		fmt.Fprintf(b, "| `%s.NAME` | | As said above. |\n", path)
	case v.Kind() == reflect.Struct:
		if first, ok := d.seen[v.Type()]; ok {
			fmt.Fprintf(b, "| `%s.…` | | The same keys as `%s`. |\n", path, first)
			return
		}
		d.seen[v.Type()] = path
		for _, field := range yamlFields(v.Type()) {
			key := yamlKey(field)
			at, value := path+"."+key, v.FieldByIndex(field.Index)
			below := value.Type()
			if below.Kind() == reflect.Slice || below.Kind() == reflect.Map {
				below = below.Elem()
			}
			if below.Kind() == reflect.Struct {
				fmt.Fprintf(b, "| `%s` | | %s |\n", at, d.comment(v.Type(), field))
				d.rows(b, value, at)
				continue
			}
			fmt.Fprintf(b, "| `%s` | %s | %s |\n", at, defaultText(value), d.comment(v.Type(), field))
		}
	}
}

// element is what holds for an element of a list where it says nothing.
func element(t reflect.Type) reflect.Value {
	if t == reflect.TypeFor[prompt.ModelConfig]() {
		return reflect.ValueOf(prompt.DefaultModelConfig())
	}
	return reflect.Zero(t)
}

func defaultText(v reflect.Value) string {
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		return "`" + shortDuration(time.Duration(v.Int())) + "`"
	case v.Kind() == reflect.Bool, v.Kind() == reflect.Int, v.Kind() == reflect.Uint64, v.Kind() == reflect.Float64:
		return fmt.Sprintf("`%v`", v)
	case v.IsZero():
		return ""
	case v.Kind() == reflect.String:
		return fmt.Sprintf("`%s`", v)
	default:
		return fmt.Sprintf("`%v`", v)
	}
}

// shortDuration is d without units that are zero: 10m, not 10m0s.
func shortDuration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// comment is the doc comment of a struct's field, fit for a table.
func (d *configDoc) comment(t reflect.Type, field reflect.StructField) string {
	d.t.Helper()
	for _, i := range field.Index[:len(field.Index)-1] {
		t = t.Field(i).Type // The field is inlined from there.
	}
	name := t.Name() + "." + field.Name
	text := d.parsed(t.PkgPath())[name]
	if text == "" {
		d.t.Fatalf("%s.%s has no comment; it is the operator's documentation", t.PkgPath(), name)
	}
	return text
}

// parsed are the field comments of a package of this module.
func (d *configDoc) parsed(pkg string) map[string]string {
	d.t.Helper()
	if known, ok := d.comments[pkg]; ok {
		return known
	}
	dir := filepath.Join("../..", strings.TrimPrefix(pkg, "github.com/firsttoken/firsttoken/"))
	if pkg == "main" || strings.HasSuffix(pkg, "/cmd/firsttoken") {
		dir = "."
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		d.t.Fatal(err)
	}
	comments := make(map[string]string)
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			d.t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			structure, ok := spec.Type.(*ast.StructType)
			if !ok {
				return true
			}
			for _, field := range structure.Fields.List {
				for _, name := range field.Names {
					comments[spec.Name.Name+"."+name.Name] = tableText(name.Name, cmp.Or(field.Doc.Text(), field.Comment.Text()))
				}
			}
			return true
		})
	}
	d.comments[pkg] = comments
	return comments
}

// tableText makes a comment one line without the field's Go name, which an
// operator does not know.
func tableText(field, comment string) string {
	text := strings.Join(strings.Fields(comment), " ")
	for _, prefix := range []string{field + " is ", field + " are ", field + " "} {
		rest, ok := strings.CutPrefix(text, prefix)
		if !ok {
			continue
		}
		text = rest
		// Names keep their letters: vLLM's, and values that are enumerated.
		if word, _, _ := strings.Cut(rest, " "); strings.ToLower(word) == word && !slices.Contains([]string{"json", "auto", "auto,"}, word) {
			text = strings.ToUpper(rest[:1]) + rest[1:]
		}
		break
	}
	return strings.ReplaceAll(text, "|", `\|`)
}

// flags writes the table of flags.
func (d *configDoc) flags(b *strings.Builder) {
	b.WriteString("\n## Flags\n\nOf `serve` and `check`. What is given as a flag wins over the file;\n" +
		"a list that both have is refused.\n\n| flag | default | meaning |\n| --- | --- | --- |\n")
	var flags configFlags
	set := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.register(set)
	var all []*pflag.Flag
	set.VisitAll(func(f *pflag.Flag) { all = append(all, f) })
	slices.SortFunc(all, func(a, b *pflag.Flag) int { return strings.Compare(a.Name, b.Name) })
	for _, f := range all {
		value := strings.Trim(f.DefValue, "[]")
		if value != "" {
			value = "`" + value + "`"
		}
		_, usage := pflag.UnquoteUsage(f)
		fmt.Fprintf(b, "| `--%s` | %s | %s |\n", f.Name, value, strings.ReplaceAll(usage, "|", `\|`))
	}
}
