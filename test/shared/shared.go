// Package shared finds the vectors, tokenizer files and traces that are kept
// beside the repository. A user who has no such folder can still build, run and
// test: those tests are skipped. With CI=true a missing folder is a failure.
package shared

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// Dir is the absolute path of the folder: $SHARED, else ../shared beside the
// repository. It skips the test where there is none, and fails it when CI=true.
func Dir(tb testing.TB) string {
	tb.Helper()
	dir := os.Getenv("SHARED")
	if dir == "" {
		dir = filepath.Join(root(), "..", "shared")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatalf("shared vectors: %v; set SHARED to the folder that holds golden/ and tokenizers/", err)
		}
		tb.Skipf("shared vectors: %v; set SHARED to the folder that holds golden/ and tokenizers/ to run this test", err)
	}
	return dir
}

// File is the path of one file below Dir. It fails the test if the file is
// missing from a folder that exists.
func File(tb testing.TB, elem ...string) string {
	tb.Helper()
	path := filepath.Join(append([]string{Dir(tb)}, elem...)...)
	if _, err := os.Stat(path); err != nil {
		tb.Fatal(err)
	}
	return path
}

// root is the repository's root, told from this file's own place.
func root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}
