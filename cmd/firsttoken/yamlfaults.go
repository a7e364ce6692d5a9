package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/firsttoken/firsttoken/spelling"
)

// yamlFaults compares a YAML document with the Go type that it is decoded into
// and names every key that is unknown or doubled and every value of the wrong
// kind, each by its path and line. The decoder itself refuses the same faults,
// but knows no paths and names Go types, which tell an operator nothing.
func yamlFaults(doc *yaml.Node, into reflect.Type) []error {
	c := &faultCollector{following: make(map[*yaml.Node]bool)}
	if doc.Kind == yaml.DocumentNode && len(doc.Content) == 1 {
		c.compare(doc.Content[0], into, "")
	}
	return c.faults
}

type faultCollector struct {
	faults []error
	// following has the anchors on the way from the root, so that one which
	// holds itself ends.
	following map[*yaml.Node]bool
}

func (c *faultCollector) add(n *yaml.Node, path, format string, args ...any) {
	if path == "" {
		path = "the file"
	}
	c.faults = append(c.faults, fmt.Errorf("%s: line %d: %s", path, n.Line, fmt.Sprintf(format, args...)))
}

func (c *faultCollector) compare(n *yaml.Node, t reflect.Type, path string) {
	if n.Kind == yaml.AliasNode {
		if c.following[n.Alias] {
			c.add(n, path, "the anchor %q holds itself", n.Value)
			return
		}
		c.following[n.Alias] = true
		defer delete(c.following, n.Alias)
		n = n.Alias
	}
	null := n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
	switch {
	case t.Kind() == reflect.Pointer:
		if !null {
			c.compare(n, t.Elem(), path)
		}
	case t.Kind() == reflect.Struct:
		if !null { // All of a section's keys may be commented out.
			c.compareStruct(n, t, path)
		}
	case t.Kind() == reflect.Slice:
		switch {
		case null:
		case n.Kind != yaml.SequenceNode:
			c.add(n, path, "%s is not a list; write one line beginning with \"-\" for each element", describe(n))
		default:
			for i, element := range n.Content {
				c.compare(element, t.Elem(), fmt.Sprintf("%s[%d]", path, i))
			}
		}
	case t.Kind() == reflect.Map:
		switch {
		case null:
		case n.Kind != yaml.MappingNode:
			c.add(n, path, "%s is not a set of keys and values", describe(n))
		default:
			c.compareMap(n, t, path)
		}
	case t.Kind() == reflect.Interface:
		// Anything goes.
	case null:
		c.add(n, path, "has no value; write one, or remove the key")
	case n.Kind != yaml.ScalarNode || n.Decode(reflect.New(t).Interface()) != nil:
		c.add(n, path, "%s is not %s", describe(n), wanted(t))
	}
}

func (c *faultCollector) compareStruct(n *yaml.Node, t reflect.Type, path string) {
	if n.Kind != yaml.MappingNode {
		c.add(n, path, "%s is not a set of keys and values; write one of the keys %s", describe(n), strings.Join(yamlKeys(t), ", "))
		return
	}
	c.eachKey(n, path, func(key, value *yaml.Node, at string) {
		if key.ShortTag() == "!!merge" {
			c.compare(value, t, path)
			return
		}
		field, ok := yamlField(t, key.Value)
		if !ok {
			c.add(key, at, "unknown key; %s", suggest(key.Value, yamlKeys(t)))
			return
		}
		c.compare(value, field.Type, at)
	})
}

func (c *faultCollector) compareMap(n *yaml.Node, t reflect.Type, path string) {
	c.eachKey(n, path, func(key, value *yaml.Node, at string) {
		if key.ShortTag() == "!!merge" {
			c.compare(value, t, path)
			return
		}
		c.compare(value, t.Elem(), at)
	})
}

// eachKey calls f for each pair of a mapping and names keys that come twice.
func (c *faultCollector) eachKey(n *yaml.Node, path string, f func(key, value *yaml.Node, at string)) {
	lines := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := key.Value
		if path != "" {
			at = path + "." + key.Value
		}
		if line, ok := lines[key.Value]; ok {
			c.add(key, at, "the key is on line %d too; write it once", line)
		}
		lines[key.Value] = key.Line
		f(key, value, at)
	}
}

// yamlFields are the configured fields of a struct, those of inlined structs
// in their place.
func yamlFields(t reflect.Type) []reflect.StructField {
	var fields []reflect.StructField
	for _, field := range reflect.VisibleFields(t) {
		if yamlKey(field) != "" {
			fields = append(fields, field)
		}
	}
	return fields
}

// yamlKey is the key of a field; empty for one that is not configured.
func yamlKey(field reflect.StructField) string {
	key, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
	if key == "-" || !field.IsExported() {
		return ""
	}
	return key
}

// yamlField is the field of a struct that a key is decoded into.
func yamlField(t reflect.Type, key string) (reflect.StructField, bool) {
	for _, field := range yamlFields(t) {
		if yamlKey(field) == key {
			return field, true
		}
	}
	return reflect.StructField{}, false
}

func yamlKeys(t reflect.Type) []string {
	var keys []string
	for _, field := range yamlFields(t) {
		keys = append(keys, yamlKey(field))
	}
	return keys
}

// suggest names the known key that was probably meant, or all of them.
func suggest(key string, known []string) string {
	best, least := "", 3 // More than two wrong letters is another word.
	for _, k := range known {
		if d := spelling.Distance(key, k); d < least {
			best, least = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf("is it %s?", best)
	}
	return "known are " + strings.Join(known, ", ")
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "a set of keys and values"
	default:
		return fmt.Sprintf("%q", n.Value)
	}
}

func wanted(t reflect.Type) string {
	if t == reflect.TypeFor[time.Duration]() {
		return "a duration; write a number with its unit, such as 500ms, 5s or 10m"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "text"
	case reflect.Float32, reflect.Float64:
		return "a number"
	default:
		return "a whole number"
	}
}

// decodeYAML decodes one document over what cfg holds and returns all faults
// of the document. What is not at fault is decoded even so, so that the values
// can be checked in the same go. The error says that there is no document to
// look for faults in.
func decodeYAML(text []byte, cfg any) (faults []error, err error) {
	var doc yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	err = decoder.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil, nil // Nothing but comments.
	}
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("the file has several YAML documents; write one")
	}
	faults = yamlFaults(&doc, reflect.TypeOf(cfg).Elem())

	strict := yaml.NewDecoder(bytes.NewReader(text))
	strict.KnownFields(true)
	if err := strict.Decode(cfg); err != nil && len(faults) == 0 {
		faults = append(faults, err) // Better a fault without path than none.
	}
	return faults, nil
}
