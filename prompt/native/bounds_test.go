//go:build cgo && !nonative

package native_test

import (
	"debug/elf"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// The library must not be able to fetch anything: none of the crates through
// which Rust programs talk to a network is in it.
func TestNoNetworkCode(t *testing.T) {
	lock, err := os.ReadFile("Cargo.lock")
	if err != nil {
		t.Fatal(err)
	}
	network := []string{
		"hf-hub", "ureq", "reqwest", "hyper", "h2", "curl", "isahc", "attohttpc", "minreq", "tokio", "mio", "async-std", "socket2",
		"rustls", "native-tls", "openssl", "openssl-sys", "hickory-resolver", "trust-dns-resolver", "url", "http",
	}
	names := regexp.MustCompile(`(?m)^name = "(.*)"$`).FindAllStringSubmatch(string(lock), -1)
	if len(names) < 20 {
		t.Fatalf("found %d crates in Cargo.lock", len(names))
	}
	for _, name := range names {
		if slices.Contains(network, name[1]) {
			t.Errorf("Cargo.lock has the crate %s: find out which feature brings it, and switch that off", name[1])
		}
	}
}

// The program needs no libpcre2, nor any other library of the tokenizers, where
// it runs.
func TestLinkedStatically(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("reads ELF files")
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	libraries, err := file.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	for _, library := range libraries {
		if strings.Contains(library, "pcre") || strings.Contains(library, "onig") || strings.Contains(library, "stdc++") {
			t.Errorf("the program asks for %s", library)
		}
	}
}

// The engines may start threads of their own only as far as we let them: none of
// fastokens' and one of rayon's, however long the text. Both take their numbers
// from the environment, at the first long text.
func TestNoThreadsOfTheirOwn(t *testing.T) {
	for _, variable := range []string{"FASTOKENS_BPE_THREADS", "RAYON_NUM_THREADS"} {
		if n := os.Getenv(variable); n != "1" {
			t.Errorf("%s is %q, want 1", variable, n)
		}
	}
	tokenizer := load(t, small, native.Fastokens)
	if _, err := tokenizer.Encode(t.Context(), strings.Repeat("<|im_start|>a long text, and more of it\n", 50_000), false); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob("/proc/self/task/*/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range names {
		if name, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(name), "fastokens") {
			t.Errorf("a thread %q", strings.TrimSpace(string(name)))
		}
	}
}
