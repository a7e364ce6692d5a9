// Package test holds what is tested from outside: rules about the source tree
// here, the whole service with real Envoy and real LMCache in the folders below.
package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/firsttoken/firsttoken"

// arrow is what one package may import of this module, and why.
type arrow struct {
	pkg string
	may []string
	why string
}

// arrows are the imports that a package may have of this module; test files may
// have test/shared besides. A package that is not listed fails the test: whoever
// adds one decides here what it may know. A trailing /... covers the packages
// below, and all alone says that everything may be imported.
var arrows = []arrow{
	{"scoring", nil, "the core and the vocabulary: everybody imports it, so it can import nobody"},
	{"envoy", nil, "names and configuration that Envoy is given; no decision is made there"},
	{"envoy/xds", []string{"envoy", "certificate"}, "it tells Envoys what envoy makes of a list of engines; where the list comes from is hidden from it"},
	{"manifests", []string{"envoy"}, "Kubernetes objects around what envoy makes; what the service is configured to is handed to it"},
	{"proto/firsttoken/v1", nil, "generated: messages for other programs, not for our packages to share"},
	{"prompt/native", nil, "text in, ids out: the Rust library must be usable and testable without a request"},
	{"goroutine", nil, "goroutines to use again, whatever they do"},
	{"prompt", []string{"scoring", "prompt/native", "goroutine"}, "a body becomes a scoring.Prompt, wherever it came from"},
	{"lmcache/zmq", nil, "a socket to frames, so that another ZeroMQ binding costs one package"},
	{"lmcache", []string{"scoring", "lmcache/zmq"}, "a source of cache truth does not know where prompts come from"},
	{"lmcache/coordinator", []string{"scoring", "lmcache"}, "a source of its own: what it shares with the controller is keys, and which endpoint is whose"},
	{"lmcache/remote", []string{"scoring", "lmcache", "lmcache/coordinator"}, "it asks the real coordinator and controller in their own words, which the two know"},
	{"kvevents", []string{"scoring", "lmcache/zmq"}, "a source of cache truth, fed by engines' own events"},
	{"routed", []string{"scoring", "counters"}, "a source of cache truth; it remembers decisions, and what engines count bounds and corrects it"},
	{"fidelity", []string{"scoring", "counters"}, "sources are held to what was routed and what engines count; which sources there are is not its business"},
	{"counters", []string{"scoring"}, "what engines count of themselves; how they are called is handed to it"},
	{"state", []string{"scoring"}, "what was learnt, in a file; who learns and who uses it is wired elsewhere"},
	{"tracing", nil, "where spans go; who makes them is not its business"},
	{"certificate", nil, "how a port speaks TLS, whatever it serves"},
	{"hub", nil, "files of a model, whoever wants them"},
	{"spelling", nil, "how far two words are apart, whatever they name"},
	{"migrate", []string{"spelling"}, "another router's settings become text; what that text means to us is checked where all of it is known"},
	{"discovery", []string{"scoring"}, "endpoints are found without regard to who asks for them"},
	{"simulator", []string{"scoring"}, "the step model of an engine is arithmetic over tokens, with its own clock"},
	{"simulator/trace", []string{"proto/firsttoken/v1"}, "files of others and our own decision records become requests; who replays them is not its business"},
	{"simulator/baseline", []string{"scoring"}, "policies that only the simulator compares with; they see what scoring shows every policy"},
	{"simulator/report", []string{"simulator/replay"}, "figures of replays; its plots take plain series, so that measured runs have the same"},
	{"simulator/replay", []string{"scoring", "counters", "routed", "simulator", "simulator/baseline", "simulator/trace"}, "it puts the service's choice and the simulated engines on one virtual clock"},
	{"engine", []string{"scoring", "prompt", "prompt/native", "lmcache", "lmcache/zmq", "simulator"}, "the simulated engine talks like a real one, so it knows everything but our server"},
	{"bench", []string{"simulator/trace"}, "a client of any OpenAI endpoint: it must measure as one who knows nothing of the service"},
	{"canary", []string{"scoring"}, "who belongs to which arm is arithmetic over the request; which policies there are it has from scoring"},
	{"extproc", []string{"canary", "scoring", "prompt", "envoy", "goroutine", "proto/firsttoken/v1", "certificate"}, "it speaks to Envoy and asks the core; where the core's knowledge comes from is hidden from it"},
	{"cmd/...", all, "the program wires everything"},
	{"examples/...", all, "examples use what users use"},
	{"test/...", all, "black-box tests start everything"},
	{"test", nil, "rules about the source need no package of ours"},
}

var all = []string{"*"}

// doors are foreign imports that one or two packages may have, each a cost that
// must stay in its place.
var doors = map[string][]string{
	"C":                      {"prompt/native", "lmcache/zmq"},                                  // without cgo the rest must compile
	"unsafe":                 {"prompt/native", "lmcache/zmq", "proto/firsttoken/v1", "prompt"}, // prompt: strings that are views of the body
	"github.com/pebbe/zmq4":  {"lmcache/zmq"},
	"github.com/spf13/cobra": {"cmd/firsttoken"},
	"gonum.org/v1/plot":      {"simulator/report"}, // what a plot looks like is decided once
}

// sourceFile is one parsed Go file of the repository, whatever its build tags.
type sourceFile struct {
	path   string // from the repository's root, with slashes
	pkg    string // its folder
	test   bool
	syntax *ast.File
}

// sources parses imports and comments of every Go file. It reads the files in
// this process, so that go test's cache sees which ones it depends on.
func sources(t *testing.T) []sourceFile {
	t.Helper()
	root := os.DirFS("..")
	var files []sourceFile
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "target"):
			return fs.SkipDir
		case d.IsDir() || path.Ext(name) != ".go":
			return nil
		}
		src, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		files = append(files, sourceFile{name, path.Dir(name), strings.HasSuffix(name, "_test.go"), f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found %d Go files below %s; is this the repository?", len(files), must(filepath.Abs("..")))
	}
	return files
}

func TestImportsFollowTheArrows(t *testing.T) {
	for _, f := range sources(t) {
		i := slices.IndexFunc(arrows, func(a arrow) bool { return covers(a.pkg, f.pkg) })
		if i < 0 {
			t.Errorf("%s: package %s is not listed in arrows", f.path, f.pkg)
			continue
		}
		for _, imp := range imports(f) {
			ours, ok := strings.CutPrefix(imp, module+"/")
			if !ok {
				continue
			}
			mayImport := slices.Contains(arrows[i].may, ours) || slices.Equal(arrows[i].may, all) ||
				f.test && (ours == "test/shared" || ours == f.pkg) // a black-box test imports its own package
			if !mayImport {
				t.Errorf("%s imports %s; %s may import %v: %s", f.path, ours, f.pkg, arrows[i].may, arrows[i].why)
			}
		}
	}
}

func TestForeignImportsHaveTheirDoors(t *testing.T) {
	for _, f := range sources(t) {
		for _, imp := range imports(f) {
			if may, ok := doors[imp]; ok && !slices.Contains(may, f.pkg) && !covers("test/...", f.pkg) {
				t.Errorf("%s imports %s, which is for %v", f.path, imp, may)
			}
		}
	}
}

// One program: what an operator installs is what is tested, and no behaviour
// hides in a second binary.
func TestOneMain(t *testing.T) {
	for _, f := range sources(t) {
		if f.syntax.Name.Name == "main" && f.pkg != "cmd/firsttoken" {
			t.Errorf("%s is a main package; add a sub-command to cmd/firsttoken instead", f.path)
		}
	}
}

func TestEveryPackageHasOneDoc(t *testing.T) {
	docs := map[string][]string{}
	for _, f := range sources(t) {
		docs[f.pkg] = append(docs[f.pkg], nil...)
		if f.syntax.Doc == nil {
			continue
		}
		docs[f.pkg] = append(docs[f.pkg], f.path)
		first := "Package " + f.syntax.Name.Name + " "
		if f.syntax.Name.Name == "main" {
			first = "Command " + path.Base(f.pkg) + " "
		}
		if !strings.HasPrefix(f.syntax.Doc.Text(), first) {
			t.Errorf("%s: the package's doc must begin with %q", f.path, first)
		}
	}
	for pkg, in := range docs {
		if len(in) != 1 {
			t.Errorf("package %s has its doc in %v; want exactly one file", pkg, in)
		}
	}
}

// A package that is named by what it holds says where things belong; these names
// say nothing and so collect everything.
func TestPackageNamesSayWhatIsInside(t *testing.T) {
	banned := []string{"util", "utils", "common", "helper", "helpers", "manager", "base", "misc", "lib", "pkg", "types", "internal"}
	for _, f := range sources(t) {
		for _, elem := range append(strings.Split(f.pkg, "/"), f.syntax.Name.Name) {
			if slices.Contains(banned, elem) {
				t.Errorf("%s: %q says nothing about what is inside", f.path, elem)
			}
		}
	}
}

// covers reports whether the pattern, a folder or a folder with /..., names pkg.
func covers(pattern, pkg string) bool {
	if below, ok := strings.CutSuffix(pattern, "/..."); ok {
		return strings.HasPrefix(pkg, below+"/")
	}
	return pattern == pkg
}

func imports(f sourceFile) []string {
	var paths []string
	for _, spec := range f.syntax.Imports {
		paths = append(paths, must(strconv.Unquote(spec.Path.Value)))
	}
	return paths
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
