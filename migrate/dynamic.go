package migrate

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// dynamicFlags are what a dynamic configuration says, as the flags of the same
// names would. In YAML models may be written with their backends, and aliases as
// a map.
func dynamicFlags(file []byte) (map[string]string, error) {
	var doc struct {
		Models  yaml.Node            `yaml:"static_models"`
		Aliases yaml.Node            `yaml:"static_aliases"`
		Others  map[string]yaml.Node `yaml:",inline"`
	}
	if err := yaml.Unmarshal(file, &doc); err != nil {
		return nil, fmt.Errorf("dynamic configuration: %w", err)
	}
	given := make(map[string]string)
	for key, node := range doc.Others {
		name := strings.ReplaceAll(key, "_", "-")
		f, err := lookup(name)
		if err != nil || f.Name != name {
			return nil, fmt.Errorf("dynamic configuration: %s: the router has no such key", key)
		}
		value, err := flat(node)
		if err != nil {
			return nil, fmt.Errorf("dynamic configuration: %s: %w", key, err)
		}
		if value == "" || f.single && value != "true" {
			continue // null, or switched off
		}
		given[name] = value
	}
	if err := dynamicModels(doc.Models, given); err != nil {
		return nil, fmt.Errorf("dynamic configuration: static_models: %w", err)
	}
	switch aliases := doc.Aliases; {
	case aliases.Kind == yaml.MappingNode:
		var pairs []string
		for i := 0; i+1 < len(aliases.Content); i += 2 {
			pairs = append(pairs, aliases.Content[i].Value+":"+aliases.Content[i+1].Value)
		}
		given["static-aliases"] = strings.Join(pairs, ",")
	case aliases.Kind != 0:
		value, err := flat(aliases)
		if err != nil {
			return nil, fmt.Errorf("dynamic configuration: static_aliases: %w", err)
		}
		if value != "" {
			given["static-aliases"] = value
		}
	}
	return given, nil
}

// dynamicModels takes a list of models, or models with their backends.
func dynamicModels(node yaml.Node, given map[string]string) error {
	if node.Kind != yaml.MappingNode {
		value, err := flat(node)
		if err == nil && value != "" {
			given["static-models"] = value
		}
		return err
	}
	var models, backends []string
	for i := 0; i+1 < len(node.Content); i += 2 {
		var details struct {
			Backends []string `yaml:"static_backends"`
		}
		if err := node.Content[i+1].Decode(&details); err != nil {
			return fmt.Errorf("%s: %w", node.Content[i].Value, err)
		}
		for _, backend := range details.Backends {
			models, backends = append(models, node.Content[i].Value), append(backends, backend)
		}
	}
	given["static-models"], given["static-backends"] = strings.Join(models, ","), strings.Join(backends, ",")
	return nil
}

// flat is a scalar, or a list of them with commas between, as a flag has it.
func flat(node yaml.Node) (string, error) {
	switch {
	case node.Kind == 0 || node.ShortTag() == "!!null":
		return "", nil
	case node.Kind == yaml.ScalarNode:
		return node.Value, nil
	case node.Kind == yaml.SequenceNode:
		var values []string
		if err := node.Decode(&values); err != nil {
			return "", err
		}
		return strings.Join(values, ","), nil
	}
	return "", fmt.Errorf("line %d: write a value, or a list of them", node.Line)
}
