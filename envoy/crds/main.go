// Command crds checks custom resources as the API server of Kubernetes does.
//
//	crds CRDS RESOURCES
//
// Both are comma-separated lists of YAML files. CRDS are the definitions: those that the projects ship in their Go
// modules, and envoy/crds/tables.yaml for projects whose modules are not available. Each document of RESOURCES is
// checked against the definition of its kind: unknown and duplicate fields, types, required fields, enums, patterns, and
// CEL rules. Istio's MeshConfig has no definition, but a Go type with every field.
//
// It does not check the consistency between resources.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	egalpha "github.com/envoyproxy/gateway/api/v1alpha1"
	contour "github.com/projectcontour/contour/apis/projectcontour/v1"
	contouralpha "github.com/projectcontour/contour/apis/projectcontour/v1alpha1"
	"google.golang.org/protobuf/encoding/protojson"
	mesh "istio.io/api/mesh/v1alpha1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	strict "sigs.k8s.io/yaml"
)

// The Go types of some kinds, for a second check with the types of the controllers.
var types = map[string]func() any{
	"gateway.envoyproxy.io/v1alpha1/SecurityPolicy":      func() any { return &egalpha.SecurityPolicy{} },
	"gateway.envoyproxy.io/v1alpha1/ClientTrafficPolicy": func() any { return &egalpha.ClientTrafficPolicy{} },
	"projectcontour.io/v1/HTTPProxy":                     func() any { return &contour.HTTPProxy{} },
	"projectcontour.io/v1alpha1/ExtensionService":        func() any { return &contouralpha.ExtensionService{} },
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: crds CRD,... RESOURCE,...")
		os.Exit(2)
	}
	definitions := map[string]*apiextensionsv1.CustomResourceValidation{}
	for _, file := range strings.Split(os.Args[1], ",") {
		if err := load(file, definitions); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", file, err)
			os.Exit(2)
		}
	}
	wrong, checked := 0, 0
	for _, file := range strings.Split(os.Args[2], ",") {
		documents, err := documents(file)
		if err == nil && len(documents) == 0 {
			err = errors.New("no document in it")
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", file, err)
			wrong++
		}
		for _, document := range documents {
			checked++
			for _, err := range check(document, definitions) {
				fmt.Fprintf(os.Stderr, "%s: %v\n", file, err)
				wrong++
			}
		}
	}
	if wrong > 0 {
		os.Exit(1)
	}
	fmt.Printf("%d resources are as their definitions want them\n", checked)
}

// Reads the definitions of a file, by apiVersion and kind.
func load(file string, definitions map[string]*apiextensionsv1.CustomResourceValidation) error {
	documents, err := documents(file)
	if err != nil {
		return err
	}
	for _, document := range documents {
		var crd apiextensionsv1.CustomResourceDefinition
		if err := strict.Unmarshal(document, &crd); err != nil {
			return err
		}
		for _, version := range crd.Spec.Versions {
			definitions[crd.Spec.Group+"/"+version.Name+"/"+crd.Spec.Names.Kind] = version.Schema
		}
	}
	return nil
}

// Returns the documents of a file, without empty ones.
func documents(file string) ([][]byte, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	var found [][]byte
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		if value, err := strict.YAMLToJSON(document); err != nil || !bytes.Equal(value, []byte("null")) {
			found = append(found, document)
		}
	}
}

func check(document []byte, definitions map[string]*apiextensionsv1.CustomResourceValidation) []error {
	value, err := strict.YAMLToJSONStrict(document)
	if err != nil {
		return []error{err}
	}
	var object map[string]any
	if err := json.Unmarshal(value, &object); err != nil {
		return []error{err}
	}
	if settings, ok := object["meshConfig"]; ok && len(object) == 1 {
		return checkMesh(settings)
	}
	name := fmt.Sprintf("%v/%v", object["apiVersion"], object["kind"])
	definition, ok := definitions[name]
	if !ok {
		return []error{fmt.Errorf("%s: no definition of this kind", name)}
	}
	found := checkResource(object, definition)
	if typed, ok := types[name]; ok {
		if err := strict.UnmarshalStrict(document, typed()); err != nil {
			found = append(found, err)
		}
	}
	for i, err := range found {
		found[i] = fmt.Errorf("%s: %w", name, err)
	}
	return found
}

// Checks Istio's MeshConfig in the values of its chart.
func checkMesh(settings any) []error {
	value, err := strict.Marshal(settings)
	if err == nil {
		value, err = strict.YAMLToJSON(value)
	}
	if err == nil {
		err = protojson.Unmarshal(value, &mesh.MeshConfig{})
	}
	if err != nil {
		return []error{fmt.Errorf("meshConfig: %w", err)}
	}
	return nil
}

func checkResource(object map[string]any, definition *apiextensionsv1.CustomResourceValidation) []error {
	var internal apiextensions.CustomResourceValidation
	if err := apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(definition, &internal, nil); err != nil {
		return []error{err}
	}
	structural, err := schema.NewStructural(internal.OpenAPIV3Schema)
	if err != nil {
		return []error{err}
	}
	validator, _, err := validation.NewSchemaValidator(internal.OpenAPIV3Schema)
	if err != nil {
		return []error{err}
	}
	var found []error
	options := schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}
	for _, path := range pruning.PruneWithOptions(object, structural, true, options) {
		found = append(found, fmt.Errorf("unknown field %s", path))
	}
	defaulting.Default(object, structural)
	for _, err := range validation.ValidateCustomResource(nil, object, validator) {
		found = append(found, err)
	}
	if rules := cel.NewValidator(structural, true, celconfig.PerCallLimit); rules != nil {
		errs, _ := rules.Validate(context.Background(), nil, structural, object, nil, celconfig.RuntimeCELCostBudget)
		for _, err := range errs {
			found = append(found, err)
		}
	}
	return found
}
